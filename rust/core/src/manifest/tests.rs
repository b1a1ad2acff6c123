use proptest::prelude::*;

use super::*;

fn digest(n: u8) -> Digest {
    Digest::new(Algorithm::Sha256, [n; 32])
}

pub(crate) fn fields() -> Fields {
    Fields {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent: AgentInfo { kind: "tester".into(), version: "1".into(), fingerprint: "é \"x\"".into() },
        model: ModelLayer { base: digest(1), diff: digest(2) },
        cache: CacheLayer { layout: "paged-batchinvariant-v1".into(), manifest: digest(3) },
        world: WorldLayer { fs: digest(4), env: digest(5), procs: digest(6) },
        effects: EffectsLayer { ledger: digest(7) },
        trace: TraceLayer { messages: digest(8) },
        created_at: "2026-05-05T12:34:56.123456789Z".into(),
        parents: vec![digest(9)],
    }
}

#[test]
fn what_is_made_is_printed_in_the_published_order() {
    let manifest = Manifest::new(fields()).unwrap();
    let d = |n: u8| digest(n).to_string();
    let want = format!(
        concat!(
            r#"{{"schema_version":1,"media_type":"application/vnd.processfork.image.v1+json","#,
            r#""agent":{{"kind":"tester","version":"1","fingerprint":"é \"x\""}},"model":{{"base":"{}","diff":"{}"}},"#,
            r#""cache":{{"layout":"paged-batchinvariant-v1","manifest":"{}"}},"world":{{"fs":"{}","env":"{}","procs":"{}"}},"#,
            r#""effects":{{"ledger":"{}"}},"trace":{{"messages":"{}"}},"created_at":"2026-05-05T12:34:56.123456789Z","parents":["{}"]}}"#
        ),
        d(1),
        d(2),
        d(3),
        d(4),
        d(5),
        d(6),
        d(7),
        d(8),
        d(9)
    );
    assert_eq!(std::str::from_utf8(manifest.bytes()).unwrap(), want);
    assert_eq!(manifest.id(), digest::hash(Algorithm::Sha256, want.as_bytes()));
    assert_eq!(manifest.blob_digests(), [1, 2, 3, 4, 5, 6, 7, 8].map(digest));
    assert_eq!(Manifest::parse(want.as_bytes()).unwrap(), manifest);
}

#[test]
fn what_is_read_keeps_its_bytes() {
    let printed = String::from_utf8(Manifest::new(fields()).unwrap().bytes().to_vec()).unwrap();
    let odd = printed.replacen('{', "{ \"later\": [1, {\"x\": null}],\n", 1).replace("12:34:56.123456789Z", "12:34:56.100Z");
    let manifest = Manifest::parse(odd.as_bytes()).unwrap();
    assert_eq!(manifest.bytes(), odd.as_bytes());
    assert_eq!(manifest.id(), digest::hash(Algorithm::Sha256, odd.as_bytes()));
    let (start, _) = printed.split_once(",\"parents\"").unwrap();
    assert!(Manifest::parse(format!("{start}}}").as_bytes()).unwrap().fields().parents.is_empty());
}

#[test]
fn times_are_shortened_as_far_as_they_stay_exact() {
    for (given, want) in [
        ("2026-05-05T12:34:56Z", "2026-05-05T12:34:56Z"),
        ("2026-05-05T12:34:56.000Z", "2026-05-05T12:34:56Z"),
        ("2026-05-05T12:34:56.5Z", "2026-05-05T12:34:56.500Z"),
        ("2026-05-05T12:34:56.120000Z", "2026-05-05T12:34:56.120Z"),
        ("2026-05-05T12:34:56.0000001Z", "2026-05-05T12:34:56.000000100Z"),
        ("2024-02-29T23:59:60Z", "2024-02-29T23:59:60Z"),
    ] {
        assert_eq!(Manifest::new(Fields { created_at: given.into(), ..fields() }).unwrap().fields().created_at, want);
    }
    for bad in [
        "",
        "2026-05-05T12:34:56",
        "2026-05-05 12:34:56Z",
        "2026-05-05T12:34:56+00:00",
        "2026-05-05T12:34:56.Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "２026-05-05T12:34:56Z",
        "2026-05-05T12:34:56.0000000001Z",
    ] {
        let error = Manifest::new(Fields { created_at: bad.into(), ..fields() }).unwrap_err();
        assert!(matches!(&error, Error::Format { field: Some(field), .. } if field == "created_at"), "{bad}: {error}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    type Change = fn(&mut Fields, Digest);
    let blake3 = Digest::new(Algorithm::Blake3, [1; 32]);
    let cases: [(&str, Change); 6] = [
        ("schema_version", |fields, _| fields.schema_version = 2),
        ("media_type", |fields, _| fields.media_type = "application/json".into()),
        ("world.env", |fields, blake3| fields.world.env = blake3),
        ("parents[0]", |fields, blake3| fields.parents[0] = blake3),
        ("model.base", |fields, _| fields.media_type = MEDIA_TYPE_BLAKE3.into()),
        ("parents", |fields, _| fields.parents = vec![digest(1); 3]),
    ];
    for (want, change) in cases {
        let mut fields = fields();
        change(&mut fields, blake3);
        let error = Manifest::new(fields).unwrap_err();
        assert!(matches!(&error, Error::Format { field: Some(field), .. } if field == want), "{want}: {error}");
    }
}

#[test]
fn malformed_documents_are_located() {
    let good = String::from_utf8(Manifest::new(fields()).unwrap().bytes().to_vec()).unwrap();
    let bad = good.replacen(&digest(4).to_string(), "sha256:XY", 1);
    match Manifest::parse(bad.as_bytes()).unwrap_err() {
        Error::Format { field, offset, .. } => {
            assert_eq!(field.as_deref(), Some("world.fs"));
            assert_eq!(offset, Some(bad.find("\"sha256:XY").unwrap() as u64));
        }
        other => panic!("{other}"),
    }
    assert_eq!(Manifest::parse(&vec![b' '; 1 + (1 << 20)]).unwrap_err().code(), "limit");
    for cut in 0..good.len() {
        assert_eq!(Manifest::parse(&good.as_bytes()[..cut]).unwrap_err().code(), "format");
    }
}

#[test]
fn contradictions_are_located_too() {
    let good = String::from_utf8(Manifest::new(fields()).unwrap().bytes().to_vec()).unwrap();
    let blake3 = digest(9).to_string().replace("sha256", "blake3");
    for (from, to, want) in [
        (digest(9).to_string(), blake3.as_str(), "parents[0]"),
        ("2026-05-05".into(), "2026-99-05", "created_at"),
        ("\"schema_version\":1".into(), "\"schema_version\":2", "schema_version"),
        (MEDIA_TYPE.into(), "text/plain", "media_type"),
        ("{\"kind\":\"tester\",\"version\":\"1\",\"fingerprint\":\"é \\\"x\\\"\"}".into(), "[\"tester\",\"1\",\"\"]", "agent"),
    ] {
        let bad = good.replacen(&from, to, 1);
        assert_ne!(bad, good);
        match Manifest::parse(bad.as_bytes()).unwrap_err() {
            Error::Format { field: Some(field), offset: Some(offset), .. } => {
                assert_eq!(field, want);
                let value = &bad[usize::try_from(offset).unwrap()..];
                assert!(value.trim_start_matches('"').starts_with(to.trim_start_matches("\"schema_version\":")), "{want}: {value}");
            }
            other => panic!("{want}: {other}"),
        }
    }
}

#[test]
fn a_later_version_is_refused_by_its_version_whatever_its_form() {
    for (later, word) in [
        (r#"{"layers":[],"media_type":"application/vnd.processfork.image.v2+json","schema_version":2}"#, "version 2 is not known"),
        (r#"{"schema_version":1,"media_type":"application/vnd.processfork.image.v2+json"}"#, "image.v2+json\" is not known"),
        (r#"{"schema_version":1,"media_type":"application/vnd.processfork.image.v1+json"}"#, "missing field"),
    ] {
        let error = Manifest::parse(later.as_bytes()).unwrap_err();
        assert!(error.code() == "format" && error.to_string().contains(word), "{error}");
    }
}

prop_compose! {
    fn any_fields()(
        texts: [String; 4],
        digests: [[u8; 32]; 8],
        blake3: bool,
        parents in proptest::collection::vec(any::<[u8; 32]>(), 0..=2),
        seconds in 0_u32..60,
        nanos in 0_u32..1_000_000_000,
    ) -> Fields {
        let algorithm = if blake3 { Algorithm::Blake3 } else { Algorithm::Sha256 };
        let [base, diff, manifest, fs, env, procs, ledger, messages] = digests.map(|bytes| Digest::new(algorithm, bytes));
        let [kind, version, fingerprint, layout] = texts;
        Fields {
            schema_version: SCHEMA_VERSION,
            media_type: Fields::media_type_of(algorithm).into(),
            agent: AgentInfo { kind, version, fingerprint },
            model: ModelLayer { base, diff },
            cache: CacheLayer { layout, manifest },
            world: WorldLayer { fs, env, procs },
            effects: EffectsLayer { ledger },
            trace: TraceLayer { messages },
            created_at: format!("2026-05-05T12:34:{seconds:02}.{nanos:09}Z"),
            parents: parents.into_iter().map(|bytes| Digest::new(algorithm, bytes)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_made_is_read_again(fields in any_fields()) {
        let manifest = Manifest::new(fields.clone()).unwrap();
        let read = Manifest::parse(manifest.bytes()).unwrap();
        prop_assert_eq!(&read, &manifest);
        prop_assert_eq!(Manifest::new(read.fields().clone()).unwrap().id(), manifest.id());
        prop_assert_eq!(Fields { created_at: fields.created_at.clone(), ..read.fields().clone() }, fields);
    }

    #[test]
    fn order_and_spaces_do_not_matter_but_stay(fields in any_fields()) {
        let value: serde_json::Value = serde_json::from_slice(Manifest::new(fields).unwrap().bytes()).unwrap();
        let sorted = serde_json::to_vec_pretty(&value).unwrap();
        let read = Manifest::parse(&sorted).unwrap();
        prop_assert_eq!(read.bytes(), &sorted[..]);
        prop_assert_eq!(serde_json::to_value(read.fields()).unwrap(), value);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Manifest::parse(&bytes);
    }
}
