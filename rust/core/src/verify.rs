//! Verification: read every blob, walk every image, and name what is wrong and whom it hurts.
//!
//! Others may use the store meanwhile. Blobs are listed before images are, so a blob that seems to be missing may have been written in
//! between: it is looked for again before it is reported. A run that was interrupted can be resumed (see [`journal`]).

mod journal;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::codec::Form;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::images::Images;
use crate::pool::{self, Monitor};
use crate::store::{BlobFile, BlobStore, DirStore, Scan, TASK_BLOBS, cut};
use crate::{io, layout, walk};
use journal::Journal;

/// Larger files are read piece by piece; so many bytes are read by one thread before they are hashed together.
const WHOLE_FILE_BYTES: usize = 16 << 20;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The blob or image; None for a file that has no such name.
    pub digest: Option<Digest>,
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Images that need it, sorted.
    pub images: Vec<Digest>,
    /// What is wrong with it; empty where the list says it all.
    pub reason: String,
}

impl Finding {
    fn new(digest: Option<Digest>, path: PathBuf, reason: impl Into<String>) -> Self {
        Self { digest, path, images: Vec::new(), reason: reason.into() }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Blobs read.
    pub checked: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// Blobs that the run that is resumed had read, and that did not change since.
    pub resumed: u64,
    /// Blobs that do not hash to their names (now in quarantine) or cannot be read, markers and pins that are not what they should be.
    pub corrupt: Vec<Finding>,
    /// Blobs that an image or a pin needs and that are not there; corrupt ones are not repeated here.
    pub missing: Vec<Finding>,
    /// Sound blobs that no image and no pin reaches: what gc may take.
    pub unreachable: Vec<Finding>,
    /// What does not belong in a store.
    pub foreign: Vec<Finding>,
    /// Images of which only a part is here, by choice.
    pub partial: Vec<Digest>,
}

/// What became of a file.
enum State {
    Sound,
    /// Sound when the run that is resumed read it.
    Known,
    Corrupt(String),
    /// No blob, or no longer there.
    None,
}

/// Checks the whole store. Corrupt blobs are moved to quarantine; nothing else is changed.
pub fn verify(store: &DirStore, images: &Images, resume: bool, monitor: &Monitor) -> Result<Verification> {
    let journal = Journal::open(store.root(), resume)?;
    let mut report = Verification::default();
    let mut blobs = Blobs::read(store, &journal, &mut report, monitor)?;
    report.partial = images.partial(store.algorithm())?;
    for image in images.list(store.algorithm())? {
        blobs.walk(store, images, image, true, monitor)?;
    }
    for image in &report.partial {
        blobs.walk(store, images, *image, false, monitor)?;
    }
    blobs.walk_pins(store, images)?;
    look_again(store, images, &mut blobs.missing, monitor)?;
    report.foreign.extend(strangers(store.root(), store.algorithm(), images)?.into_iter().map(foreign));
    let Blobs { sound, corrupt, missing, reached, documents } = blobs;
    report.unreachable =
        sound.into_iter().filter(|(digest, _)| !reached.contains(digest)).map(|(digest, path)| Finding::new(Some(digest), path, "")).collect();
    report.corrupt = corrupt.into_values().chain(documents).collect();
    report.missing = missing.into_values().collect();
    for findings in [&mut report.corrupt, &mut report.missing, &mut report.unreachable, &mut report.foreign] {
        findings.sort_by(|a, b| a.path.cmp(&b.path));
    }
    journal.remove()?;
    Ok(report)
}

fn foreign(path: PathBuf) -> Finding {
    Finding::new(None, path, "")
}

/// Blobs as they were found, and what images and pins need of them.
#[derive(Default)]
struct Blobs {
    sound: HashMap<Digest, PathBuf>,
    corrupt: HashMap<Digest, Finding>,
    missing: HashMap<Digest, Finding>,
    reached: HashSet<Digest>,
    /// Markers, pins and documents that are not what they should be.
    documents: Vec<Finding>,
}

impl Blobs {
    /// Reads all blobs, and counts them.
    fn read(store: &DirStore, journal: &Journal, report: &mut Verification, monitor: &Monitor) -> Result<Self> {
        let Scan { files, others } = store.scan()?;
        report.foreign.extend(others.into_iter().map(foreign));
        monitor.expect(files.len() as u64);
        let shards: Vec<&[BlobFile]> = files.chunk_by(|a, b| a.shard() == b.shard()).collect();
        // So many directories at a time that their files fill the lanes of a kernel.
        let parts = cut(0..shards.len(), usize::MAX, TASK_BLOBS, |index| shards[index].len());
        let mut end = 0;
        let range = |part: Range<usize>| {
            let begin = end;
            end += shards[part].iter().map(|shard| shard.len()).sum::<usize>();
            begin..end
        };
        let parts: Vec<Range<usize>> = parts.into_iter().map(range).collect();
        let run = Run { store, files: &files, share: pool::share(files.len(), TASK_BLOBS), journal, monitor };
        let checked: Vec<Vec<State>> = pool::install(|| parts.into_par_iter().map(|part| run.check_shards(part)).collect::<Result<_>>())?;
        let base = store.root().join(layout::blobs(store.algorithm()));
        let mut blobs = Self::default();
        for (file, state) in files.iter().zip(checked.into_iter().flatten()) {
            let path = base.join(&file.name);
            let Some((digest, _)) = file.blob else {
                if !io::is_temporary(&file.name) {
                    report.foreign.push(foreign(path));
                }
                continue;
            };
            let read = matches!(state, State::Sound | State::Corrupt(_));
            report.checked += u64::from(read);
            report.bytes += if read { file.meta.len } else { 0 };
            report.resumed += u64::from(matches!(state, State::Known));
            match state {
                State::Sound | State::Known => drop(blobs.sound.insert(digest, path)),
                State::Corrupt(reason) => drop(blobs.corrupt.insert(digest, Finding::new(Some(digest), path, reason))),
                State::None => {}
            }
        }
        Ok(blobs)
    }

    /// Notes that an image needs a blob; one that is whole needs it here.
    fn need(&mut self, store: &DirStore, image: Digest, digest: Digest, whole: bool) {
        self.reached.insert(digest);
        if self.sound.contains_key(&digest) {
            return;
        }
        let hurt = match self.corrupt.get_mut(&digest) {
            Some(finding) => finding,
            None if whole => self.missing.entry(digest).or_insert_with(|| Finding::new(Some(digest), store.blob_path(&digest), "")),
            None => return,
        };
        if hurt.images.last() != Some(&image) {
            hurt.images.push(image);
        }
    }

    /// Looks at everything that an image needs.
    fn walk(&mut self, store: &DirStore, images: &Images, image: Digest, whole: bool, monitor: &Monitor) -> Result<()> {
        monitor.check()?;
        let damaged = |digest: Digest, path, error: &Error| Finding { images: vec![image], ..Finding::new(Some(digest), path, reason(error)) };
        let manifest = match images.marker(&image) {
            Ok(manifest) => manifest,
            // Removed meanwhile.
            Err(Error::BlobNotFound { .. }) => return Ok(()),
            Err(error) => {
                let dir = if whole { layout::IMAGES } else { layout::PARTIAL };
                self.documents.push(damaged(image, store.root().join(dir).join(layout::marker(&image)), &error));
                match images.get(store, &image) {
                    Ok(manifest) => manifest,
                    Err(_) => return Ok(()),
                }
            }
        };
        self.need(store, image, image, whole);
        for digest in walk::manifest_blob_digests(&manifest) {
            self.need(store, image, digest, whole);
        }
        for document in walk::documents(&manifest, &walk::Selection::all()) {
            match document.children(store) {
                Ok(children) => children.into_iter().for_each(|digest| self.need(store, image, digest, whole)),
                Err(error @ Error::Format { .. }) => {
                    let digest = *document.digest();
                    let path = self.sound.get(&digest).cloned().unwrap_or_else(|| store.blob_path(&digest));
                    self.documents.push(damaged(digest, path, &error));
                }
                // One that is damaged or missing hides what it names; it is reported itself.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Looks at what is pinned.
    fn walk_pins(&mut self, store: &DirStore, images: &Images) -> Result<()> {
        for (name, digest) in images.each_pin()? {
            match digest {
                Ok(digest) => {
                    // One that is damaged or malformed is a root all the same.
                    self.reached.extend(walk::pinned(&digest, store).unwrap_or_else(|_| vec![digest]));
                    if !self.sound.contains_key(&digest) && !self.corrupt.contains_key(&digest) {
                        let blob = || Finding::new(Some(digest), store.blob_path(&digest), format!("pin {name:?} is of it"));
                        self.missing.entry(digest).or_insert_with(blob);
                    }
                }
                Err(error) => self.documents.push(Finding::new(None, store.root().join(layout::PINS).join(&name), reason(&error))),
            }
        }
        Ok(())
    }
}

/// Takes out what was written, or is no longer needed, since blobs and images were listed.
fn look_again(store: &DirStore, images: &Images, missing: &mut HashMap<Digest, Finding>, monitor: &Monitor) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let listed: HashSet<Digest> = images.list(store.algorithm())?.into_iter().collect();
    let mut here = HashSet::new();
    for (digest, finding) in missing.iter_mut() {
        monitor.check()?;
        let needed = !finding.images.is_empty();
        finding.images.retain(|image| listed.contains(image));
        let written = || match store.get_stream(digest, &mut std::io::sink()) {
            Ok(_) => Ok(true),
            Err(Error::BlobNotFound { .. } | Error::Integrity { .. } | Error::Limit { .. }) => Ok(false),
            Err(Error::Io { source, .. }) if !io::is_exhaustion(&source) => Ok(false),
            Err(error) => Err(error),
        };
        if (needed && finding.images.is_empty() && finding.reason.is_empty()) || written()? {
            here.insert(*digest);
        }
    }
    missing.retain(|digest, _| !here.contains(digest));
    Ok(())
}

/// What lies at the root, among the directories of blobs, and among the markers, and is nothing of a store or a registry.
fn strangers(root: &Path, algorithm: Algorithm, images: &Images) -> Result<Vec<PathBuf>> {
    let known = |dir: &str, name: &str| match dir {
        "" => layout::ROOT.contains(&name) || layout::REGISTRY.iter().any(|known| name.starts_with(known)) || name == "packs",
        "blobs" => layout::blobs(algorithm) == format!("blobs/{name}"),
        _ => layout::parse_marker(algorithm, name).is_some(),
    };
    let mut found = Vec::new();
    for dir in ["", "blobs", layout::IMAGES, layout::PARTIAL] {
        for name in images.names(dir)? {
            if !known(dir, &name) && !io::is_temporary(&name) {
                found.push(root.join(dir).join(name));
            }
        }
    }
    Ok(found)
}

/// What an error says beside whom it is about.
fn reason(error: &Error) -> String {
    match error {
        Error::Integrity { reason, .. } | Error::Format { reason, .. } => reason.clone(),
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// One reading of all files of a store.
struct Run<'a> {
    store: &'a DirStore,
    files: &'a [BlobFile],
    /// So many of them are read and hashed together.
    share: usize,
    journal: &'a Journal,
    monitor: &'a Monitor,
}

impl Run<'_> {
    /// Checks the files of a few directories, and notes the directories where all are sound.
    fn check_shards(&self, files: Range<usize>) -> Result<Vec<State>> {
        let began = self.journal.now();
        let tasks = cut(files.clone(), self.share, WHOLE_FILE_BYTES, |index| usize::try_from(self.files[index].meta.len).unwrap_or(usize::MAX));
        let states: Vec<Vec<State>> = tasks.into_par_iter().map(|task| self.check(task)).collect::<Result<_>>()?;
        let states: Vec<State> = states.into_iter().flatten().collect();
        let mut rest = &states[..];
        for shard in self.files[files].chunk_by(|a, b| a.shard() == b.shard()) {
            let (own, others) = rest.split_at(shard.len());
            rest = others;
            if let Some(began) = began.filter(|_| !own.iter().any(|state| matches!(state, State::Corrupt(_)))) {
                self.journal.finished(shard.first().map_or("", BlobFile::shard), began);
            }
        }
        Ok(states)
    }

    /// Whether the contents of a few files hash to their names; those that are known to do are not read.
    fn check(&self, files: Range<usize>) -> Result<Vec<State>> {
        let Self { store, monitor, .. } = *self;
        let next = files.end;
        let files = &self.files[files];
        let mut states: Vec<State> = files.iter().map(|_| State::None).collect();
        let (mut places, mut small) = (Vec::new(), Vec::new());
        for (place, file) in files.iter().enumerate() {
            let len = file.meta.len;
            let Some((digest, form)) = file.blob.filter(|_| len > 0) else {
                monitor.advance(1, 0)?;
                continue;
            };
            if self.journal.vouches(file.shard(), &file.meta) {
                states[place] = State::Known;
                monitor.advance(1, 0)?;
            } else if len <= WHOLE_FILE_BYTES as u64 {
                places.push(place);
                small.push((digest, form, usize::try_from(len).unwrap_or(WHOLE_FILE_BYTES)));
            } else {
                let reader = store.open_file(&digest, form);
                let found = reader.and_then(|reader| reader.map(|reader| reader.read_to(&mut std::io::sink())).transpose());
                states[place] = state(store, &digest, form, found.map(|len| len.is_some()))?;
                monitor.advance(1, len)?;
            }
        }
        let checked = store.check_files(&small, || self.ask_ahead(next), monitor);
        for ((place, (digest, form, len)), found) in places.into_iter().zip(&small).zip(checked) {
            states[place] = state(store, digest, *form, found)?;
            monitor.advance(1, *len as u64)?;
        }
        Ok(states)
    }

    /// Asks the disk for small files of the next tasks, as many as all threads read at once, so that it works while they hash.
    fn ask_ahead(&self, next: usize) {
        for file in self.files[next..].iter().take(self.share * pool::threads()) {
            if let Some((digest, form)) = file.blob.filter(|_| !self.journal.vouches(file.shard(), &file.meta)) {
                self.store.ask_for(&digest, form, file.meta.len);
            }
        }
    }
}

/// What it says of a file that it was read, or gone, or could not be.
fn state(store: &DirStore, digest: &Digest, form: Form, found: Result<bool>) -> Result<State> {
    match found {
        Ok(true) => Ok(State::Sound),
        Ok(false) | Err(Error::BlobNotFound { .. }) => Ok(State::None),
        Err(Error::Limit { .. }) => Ok(State::Corrupt(reason(&store.condemn(digest, form, "it holds more than any blob may")))),
        Err(error @ Error::Integrity { .. }) => Ok(State::Corrupt(reason(&error))),
        // A bad sector, or a file that others may not read: it is named, and everything else is checked all the same.
        Err(Error::Io { source, .. }) if !io::is_exhaustion(&source) => Ok(State::Corrupt(source.to_string())),
        Err(error) => Err(error),
    }
}
