//! Image manifests: the document that makes blobs an image.
//!
//! An image's id is the digest of its manifest's bytes, and signatures are over them. A manifest that was read therefore keeps the bytes it
//! was read from, unknown fields included, and is never printed anew; one that is made is printed as the published format does.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::{self, Algorithm, Digest};
use crate::error::{Error, Result};
use crate::{json, limits};

/// The only version there is.
pub const SCHEMA_VERSION: u64 = 1;
/// Media type of the published format, whose digests are SHA-256.
pub const MEDIA_TYPE: &str = "application/vnd.processfork.image.v1+json";
/// Media type of images whose digests are BLAKE3.
pub const MEDIA_TYPE_BLAKE3: &str = "application/vnd.pfimg.image.v1+json";
/// One parent for a fork, two for a merge.
const MOST_PARENTS: usize = 2;
const WHAT: &str = "image manifest";

/// Who was captured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentInfo {
    /// What it is, for example the name of the program.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// Anything that tells two configurations apart.
    pub fingerprint: String,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelLayer {
    /// The base model: any bytes.
    pub base: Digest,
    /// What was trained on top of it.
    pub diff: Digest,
}

/// The KV cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheLayer {
    /// Layout of the pages.
    pub layout: String,
    /// The page manifest.
    pub manifest: Digest,
}

/// The surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorldLayer {
    /// The tree of files.
    pub fs: Digest,
    /// The environment.
    pub env: Digest,
    /// The processes.
    pub procs: Digest,
}

/// What was done to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EffectsLayer {
    /// The effects ledger.
    pub ledger: Digest,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceLayer {
    /// The messages, as JSON lines.
    pub messages: Digest,
}

/// The fields of a manifest, in the order in which they are printed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fields {
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u64,
    /// [`MEDIA_TYPE`] or [`MEDIA_TYPE_BLAKE3`].
    pub media_type: String,
    /// Who was captured.
    #[serde(deserialize_with = "json::object")]
    pub agent: AgentInfo,
    /// The model.
    #[serde(deserialize_with = "json::object")]
    pub model: ModelLayer,
    /// The KV cache.
    #[serde(deserialize_with = "json::object")]
    pub cache: CacheLayer,
    /// The surroundings.
    #[serde(deserialize_with = "json::object")]
    pub world: WorldLayer,
    /// What was done to the outside.
    #[serde(deserialize_with = "json::object")]
    pub effects: EffectsLayer,
    /// What was said.
    #[serde(deserialize_with = "json::object")]
    pub trace: TraceLayer,
    /// RFC 3339, UTC with `Z`.
    pub created_at: String,
    /// Images that this one comes from; may be absent when read.
    #[serde(default)]
    pub parents: Vec<Digest>,
}

impl Fields {
    /// The media type of images with such digests.
    #[must_use]
    pub const fn media_type_of(algorithm: Algorithm) -> &'static str {
        match algorithm {
            Algorithm::Sha256 => MEDIA_TYPE,
            Algorithm::Blake3 => MEDIA_TYPE_BLAKE3,
        }
    }

    fn layers(&self) -> [(&'static str, &Digest); 8] {
        [
            ("model.base", &self.model.base),
            ("model.diff", &self.model.diff),
            ("cache.manifest", &self.cache.manifest),
            ("world.fs", &self.world.fs),
            ("world.env", &self.world.env),
            ("world.procs", &self.world.procs),
            ("effects.ledger", &self.effects.ledger),
            ("trace.messages", &self.trace.messages),
        ]
    }

    fn check(&self) -> Result<Algorithm> {
        let bad = |field: &str, reason: String| Err(Error::field(WHAT, field, reason));
        let algorithm = algorithm_of(self.schema_version, &self.media_type)?;
        for (field, digest) in self.layers() {
            if digest.algorithm() != algorithm {
                return bad(field, format!("{digest} in an image whose digests are {algorithm}"));
            }
        }
        if self.parents.len() > MOST_PARENTS {
            return bad("parents", format!("{} parents; an image has at most {MOST_PARENTS}", self.parents.len()));
        }
        if let Some(at) = self.parents.iter().position(|parent| parent.algorithm() != algorithm) {
            return bad(&format!("parents[{at}]"), format!("{} in an image whose digests are {algorithm}", self.parents[at]));
        }
        if !is_utc_time(&self.created_at) {
            return bad("created_at", format!("{:?} is no RFC 3339 time in UTC that ends in Z", self.created_at));
        }
        Ok(algorithm)
    }
}

/// The hash function of images of that version and media type, where both are known.
fn algorithm_of(schema_version: u64, media_type: &str) -> Result<Algorithm> {
    if schema_version != SCHEMA_VERSION {
        return Err(Error::field(WHAT, "schema_version", format!("version {schema_version} is not known; this is {SCHEMA_VERSION}")));
    }
    match media_type {
        MEDIA_TYPE => Ok(Algorithm::Sha256),
        MEDIA_TYPE_BLAKE3 => Ok(Algorithm::Blake3),
        other => Err(Error::field(WHAT, "media_type", format!("{other:?} is not known"))),
    }
}

/// Reads the fields. What a later version lacks or adds is not held against it: it is refused by its version or media type.
fn read(bytes: &[u8]) -> Result<Fields> {
    #[derive(Deserialize)]
    struct Head {
        schema_version: u64,
        media_type: String,
    }
    json::parse(WHAT, bytes).map_err(|error| match json::parse::<Head>(WHAT, bytes) {
        Ok(head) => algorithm_of(head.schema_version, &head.media_type).err().unwrap_or(error),
        Err(_) => error,
    })
}

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    fields: Fields,
    bytes: Arc<[u8]>,
    id: Digest,
}

impl Manifest {
    /// Reads a manifest; keeps its bytes.
    ///
    /// # Errors
    /// [`Error::Format`] naming field and byte; [`Error::Limit`] above [`limits::MANIFEST_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > limits::MANIFEST_BYTES {
            return Err(Error::Limit { what: format!("{WHAT} of {} bytes", bytes.len()), name: "MANIFEST_BYTES", limit: limits::MANIFEST_BYTES });
        }
        let read = read(bytes).and_then(|fields| Ok((fields.check()?, fields)));
        let (algorithm, fields) = read.map_err(|error| json::placed(error, bytes))?;
        digest::kernel()?;
        Ok(Self { fields, id: digest::hash(algorithm, bytes), bytes: bytes.into() })
    }

    /// Makes a manifest. The time is shortened to the fewest of 0, 3, 6 or 9 fraction digits that are exact, so that an implementation which
    /// prints times anew comes to the same bytes.
    pub fn new(mut fields: Fields) -> Result<Self> {
        fields.check()?;
        fields.created_at = shortest_time(&fields.created_at)?;
        Self::parse(&serde_json::to_vec(&fields).expect("strings and numbers"))
    }

    /// What it says.
    #[must_use]
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The bytes it was read from.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The image's id: the digest of [`Manifest::bytes`].
    #[must_use]
    pub const fn id(&self) -> Digest {
        self.id
    }

    /// The layers' digests, in walk order.
    #[must_use]
    pub fn blob_digests(&self) -> [Digest; 8] {
        self.fields.layers().map(|(_, digest)| *digest)
    }
}

/// Whether a text is `YYYY-MM-DDThh:mm:ss[.fraction]Z` and such a moment exists (leap seconds included).
fn is_utc_time(text: &str) -> bool {
    let Some(text) = text.strip_suffix('Z') else { return false };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let bytes = seconds.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    if bytes.len() != shape.len() || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    if !bytes.iter().zip(shape).all(|(byte, want)| if *want == b'd' { byte.is_ascii_digit() } else { byte == want }) {
        return false;
    }
    let number = |range: std::ops::Range<usize>| seconds[range].parse::<u32>().unwrap_or(u32::MAX);
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => 0,
    };
    (1..=days).contains(&day) && number(11..13) < 24 && number(14..16) < 60 && number(17..19) <= 60
}

fn shortest_time(time: &str) -> Result<String> {
    let Some((seconds, fraction)) = time.trim_end_matches('Z').split_once('.') else { return Ok(time.to_owned()) };
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 {
        return Err(Error::field(WHAT, "created_at", format!("{time:?} is finer than a nanosecond")));
    }
    let digits = fraction.len().div_ceil(3) * 3;
    Ok(if digits == 0 { format!("{seconds}Z") } else { format!("{seconds}.{fraction:0<digits$}Z") })
}

#[cfg(test)]
mod tests;
