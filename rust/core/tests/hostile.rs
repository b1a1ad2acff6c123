//! The committed corpus of hostile input, and what damage makes of it. `make fuzz` looks for more of it.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "../../../tests/fuzz/src/lib.rs"]
mod targets;

/// Damaged forms of each file.
const FORMS: u32 = 200;

fn corpus(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let files: Vec<Vec<u8>> = directory.read_dir().unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!files.is_empty());
    for data in &files {
        check(data);
        let damage = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..4);
        let mut runner = TestRunner::new(Config { cases: FORMS, failure_persistence: None, ..Config::default() });
        let survived = runner.run(&damage, |(at, other, byte, kind)| {
            let (at, other) = (at.index(data.len() + 1), other.index(data.len() + 1));
            let (start, end) = (at.min(other), at.max(other));
            let mut damaged = data.clone();
            match kind {
                0 => damaged.truncate(at),
                1 => drop(damaged.splice(at..at, [byte])),
                2 => drop(damaged.splice(end..end, data[start..end].to_vec())),
                _ => damaged.iter_mut().skip(at).take(1).for_each(|found| *found ^= byte | 1),
            }
            check(&damaged);
            Ok(())
        });
        survived.unwrap();
    }
}

macro_rules! corpora {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            corpus(stringify!($target), targets::$target);
        })*

        #[test]
        fn every_corpus_has_a_target() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
            let mut names: Vec<String> = directory.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort_unstable();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

corpora! { car float_frame frame image manifest pack_index pages tree }
