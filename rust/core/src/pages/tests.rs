use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::digest::Algorithm;

const META: CacheMeta = CacheMeta { page_size_tokens: 16, n_layers: 32, n_heads: 8, head_dim: 128, dtype: Dtype::Bf16 };

fn page(ix: u64) -> Page {
    let digest = |side: u8| Digest::new(Algorithm::Sha256, [u8::try_from(ix % 256).unwrap() ^ side; 32]);
    Page { ix, k: digest(0), v: digest(0x80) }
}

fn sequence(id: &str, page_ixs: &[u64], fill_in_last_page: u64) -> LogicalSeq {
    LogicalSeq { id: id.into(), page_ixs: page_ixs.to_vec(), fill_in_last_page }
}

#[test]
fn documents_are_printed_in_the_published_order() {
    let manifest = PageManifest::new(META, vec![page(0)], vec![sequence("s", &[0, 0], 7)]).unwrap();
    let want = format!(
        concat!(
            r#"{{"layout":"paged-batchinvariant-v1","page_size_tokens":16,"n_layers":32,"n_heads":8,"head_dim":128,"dtype":"bf16","#,
            r#""pages":[{{"ix":0,"k":"{}","v":"{}"}}],"logical_seqs":[{{"id":"s","page_ixs":[0,0],"fill_in_last_page":7}}]}}"#
        ),
        page(0).k,
        page(0).v
    );
    assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), want);
}

#[test]
fn the_published_document_of_no_cache_is_read() {
    let text = concat!(
        r#"{"dtype":"bf16","head_dim":0,"layout":"paged-batchinvariant-v1","logical_seqs":[],"n_heads":0,"n_layers":0,"#,
        r#""page_size_tokens":16,"pages":[],"note":"nothing was captured"}"#
    );
    let manifest = PageManifest::parse(text.as_bytes()).unwrap();
    assert_eq!((manifest.pages().len(), manifest.meta().page_bytes().unwrap()), (0, 0));
}

#[test]
fn page_size_is_the_product_and_never_overflows() {
    assert_eq!(META.page_bytes().unwrap(), 32 * 16 * 8 * 128 * 2);
    for dtype in ["bf16", "f16", "f32", "fp8e4m3"] {
        assert_eq!(dtype.parse::<Dtype>().unwrap().name(), dtype);
    }
    assert_eq!("f64".parse::<Dtype>().unwrap_err().code(), "format");
    assert_eq!(CacheMeta { n_layers: u64::MAX, ..META }.page_bytes().unwrap_err().code(), "limit");
    assert_eq!(PageManifest::new(CacheMeta { n_heads: 1 << 30, ..META }, vec![], vec![]).unwrap_err().code(), "limit");
    for (field, meta, page) in [("head_dim", CacheMeta { n_layers: 0, head_dim: 1 << 32, ..META }, page(0)), ("pages[0].ix", META, page(1 << 32))] {
        let error = PageManifest::new(meta, vec![page], vec![]).unwrap_err();
        assert!(matches!(&error, Error::Format { field: Some(found), .. } if found == field), "{field}: {error}");
    }
}

#[test]
fn contradictions_are_named() {
    let cases = [
        (vec![page(1), page(1)], vec![], "pages[1].ix"),
        (vec![], vec![sequence("a", &[], 0), sequence("a", &[], 0)], "logical_seqs[1].id"),
        (vec![page(1)], vec![sequence("a", &[1, 2], 0)], "logical_seqs[0].page_ixs[1]"),
        (vec![page(1)], vec![sequence("a", &[1], 16)], "logical_seqs[0].fill_in_last_page"),
    ];
    for (pages, sequences, want) in cases {
        let error = PageManifest::new(META, pages, sequences).unwrap_err();
        assert!(matches!(&error, Error::Format { field: Some(field), .. } if field == want), "{want}: {error}");
    }
}

#[test]
fn malformed_documents_are_located() {
    let good = String::from_utf8(PageManifest::new(META, (0..20).map(page).collect(), vec![]).unwrap().to_json()).unwrap();
    let bad = good.replacen(&page(17).k.to_string(), "sha256:", 1);
    assert_eq!(place(&bad), ("pages[17].k".into(), bad.find("\"sha256:\"").unwrap()));
    for broken in ["\"ix\":-1,", "\"ix\":0.5,", "\"ix\":18446744073709551616,"] {
        assert_eq!(place(&good.replacen("\"ix\":3,", broken, 1)).0, "pages[3].ix", "{broken}");
    }
    let items = good.replacen(&serde_json::to_string(&page(2)).unwrap(), &format!("[2,\"{}\",\"{}\"]", page(2).k, page(2).v), 1);
    assert_eq!(place(&items), ("pages[2]".into(), items.find("[2,").unwrap()));
}

/// Field and byte of the error that a document gives.
fn place(document: &str) -> (String, usize) {
    match PageManifest::parse(document.as_bytes()).unwrap_err() {
        Error::Format { field: Some(field), offset: Some(offset), .. } => (field, usize::try_from(offset).unwrap()),
        other => panic!("{other}"),
    }
}

#[test]
fn contradictions_of_documents_are_located() {
    let sequences = vec![sequence("a", &[0, 1], 7), sequence("b", &[19], 0)];
    let good = String::from_utf8(PageManifest::new(META, (0..20).map(page).collect(), sequences).unwrap().to_json()).unwrap();
    for (from, to, field) in [
        ("\"ix\":3,", "\"ix\":4,", "pages[4].ix"),
        ("\"ix\":3,", "\"ix\":2,", "pages[3].ix"),
        ("\"id\":\"b\"", "\"id\":\"a\"", "logical_seqs[1].id"),
        ("[0,1]", "[0,20]", "logical_seqs[0].page_ixs[1]"),
        ("page\":7", "page\":16", "logical_seqs[0].fill_in_last_page"),
    ] {
        let bad = good.replacen(from, to, 1);
        let (found, offset) = place(&bad);
        let name = field.rsplit('.').next().unwrap();
        let before = if name.ends_with(']') { "[0,".to_owned() } else { format!("\"{name}\":") };
        assert!(found == field && bad[..offset].ends_with(&before), "{field}: {found}, byte {offset}");
    }
}

#[test]
fn a_growing_cache_keeps_what_it_has() {
    let base = PageManifest::new(META, vec![page(0), page(4)], vec![sequence("a", &[0, 4], 3)]).unwrap();
    let replaced = Page { v: page(9).v, ..page(4) };
    let grown = base.extended(vec![page(6), replaced], vec![sequence("b", &[6], 0), sequence("a", &[0, 4, 6], 1)]).unwrap();
    assert_eq!(grown.pages(), [page(0), replaced, page(6)]);
    assert_eq!(grown.logical_seqs(), [sequence("a", &[0, 4, 6], 1), sequence("b", &[6], 0)]);
    assert_eq!((grown.page(6), grown.page(5)), (Some(&page(6)), None));
    assert_eq!(grown.sequence("b").unwrap().page_ixs, [6]);
    assert!(base.extended(vec![page(7), page(7)], vec![]).is_err());
}

#[test]
fn only_a_list_of_pages_makes_a_page_manifest() {
    for other in ["", "{}", "[]", "{\"pages\":1}", "{\"pages\":", "nonsense"] {
        assert_eq!(listed::<Vec<Page>>(other.as_bytes()).unwrap(), None, "{other}");
    }
    for claims in ["{\"pages\":[", "{\"a\":{\"b\":[]},\"pages\":[{}]}"] {
        assert_eq!(listed::<Vec<Page>>(claims.as_bytes()).unwrap_err().code(), "format", "{claims}");
    }
}

/// What a parser alone makes of a document, and of its list of pages.
fn parsed(bytes: &[u8]) -> (Result<PageManifest>, Result<Vec<Page>>) {
    let manifest = json::parse::<Document<Objects<Page>, Objects<LogicalSeq>>>(WHAT, bytes).and_then(|document| {
        let Document { layout, page_size_tokens, n_layers, n_heads, head_dim, dtype, pages, logical_seqs } = document;
        let meta = CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype };
        let manifest = PageManifest { layout, meta, pages: pages.0, logical_seqs: logical_seqs.0 };
        manifest.checked().map_err(|error| json::placed(error, bytes))
    });
    (manifest, json::parse::<Listed>(WHAT, bytes).map(|document| document.pages.0))
}

/// Fails unless a document is read as a parser alone reads it: the same pages, or the same error at the same byte.
fn same(bytes: &[u8]) {
    let plain = |result: Result<PageManifest>| result.map_err(|error| format!("{error:?}"));
    let (manifest, pages) = parsed(bytes);
    assert_eq!(plain(PageManifest::parse(bytes)), plain(manifest), "{}", bytes.escape_ascii());
    let text = |pages: Result<Option<Vec<Page>>>| pages.map_err(|error| format!("{error:?}"));
    let found = text(listed(bytes));
    if found != Ok(None) {
        assert_eq!(found, text(pages.map(Some)), "{}", bytes.escape_ascii());
    }
    for (least, piece) in [(0, 1), (90, 7), (140, 300)] {
        if let Some(streamed) = in_pieces(bytes, least, piece).transpose() {
            assert_eq!(text(streamed.map(Some)), found.clone().map(|pages| pages.or(Some(Vec::new()))), "{} of {}", piece, bytes.escape_ascii());
        }
    }
}

/// What is found in a document that comes in pieces.
fn in_pieces(bytes: &[u8], least: usize, piece: usize) -> Result<Option<Vec<Page>>> {
    let mut pieces = Pieces::new(least);
    bytes.chunks(piece).for_each(|piece| pieces.write_all(piece).unwrap());
    pieces.finish()
}

#[test]
fn a_list_of_the_usual_form_needs_no_parser() {
    let manifest = PageManifest::new(META, [0, 9, 10, 4_294_967_295].map(page).to_vec(), vec![sequence("a", &[9], 0)]).unwrap();
    let printed = manifest.to_json();
    let at = json::find(&printed, "pages").unwrap();
    let mut pages = Vec::new();
    assert!(list::parse(&printed[at..], &mut pages).unwrap().starts_with(b",\"logical_seqs\""));
    assert_eq!(pages, manifest.pages());
    for piece in [1, 100, 10_000] {
        assert_eq!(in_pieces(&printed, at + 1, piece).unwrap(), Some(pages.clone()));
    }
}

#[test]
fn what_looks_usual_is_read_as_a_parser_reads_it() {
    let good = String::from_utf8(PageManifest::new(META, (0..3).map(page).collect(), vec![sequence("a", &[0, 1, 2], 0)]).unwrap().to_json()).unwrap();
    let pages = &good[good.find("[{").unwrap()..good.find(",\"logical_seqs").unwrap()];
    let reordered = format!("{{\"pages\":{pages},{}}}", good.replacen(&format!("\"pages\":{pages},"), "", 1).trim_matches(['{', '}']));
    assert_eq!(PageManifest::parse(reordered.as_bytes()).unwrap().pages().len(), 3);
    let cases = [
        (r#""ix":1,"#, vec![r#""ix":01,"#, r#""ix":-0,"#, r#""ix":1.0,"#, r#""ix":1e0,"#, r#""ix":,"#, r#""ix": 1,"#, r#""ix":"1","#]),
        (
            r#""ix":2,"#,
            vec![r#""ix":4294967295,"#, r#""ix":4294967296,"#, r#""ix":9999999999,"#, r#""ix":99999999999999999999,"#, r#""ix":2,"ix":2,"#],
        ),
        (
            r#""k":"sha256:"#,
            vec![r#""k":"\u0073ha256:"#, r#""\u006b":"sha256:"#, r#""k":"blake3:"#, r#""k":"SHA256:"#, r#""k":"sha512:"#, r#""k":""#],
        ),
        (
            r#"8181"},"#,
            vec![r#"8181"} ,"#, r#"8181","note":[{}]},"#, r#"8181","k":""},"#, r#"818g"},"#, r#"818A"},"#, r#"818"},"#, "8181\n\"},", r#"8181"}"#],
        ),
        (r#""}],"logical"#, vec![r#""}] ,"logical"#, r#""}],"pages":[],"logical"#, r#""},],"logical"#, r#""}"logical"#, r#""}]]"logical"#]),
        (
            r#""pages":["#,
            vec![
                r#""pages":[],"pages":["#,
                r#""p\u0061ges":["#,
                r#""pages": ["#,
                r#""pages":[ "#,
                r#""pages":[[],"#,
                r#""Pages":["#,
                r#""other":[],"pages":["#,
            ],
        ),
    ];
    same(good.as_bytes());
    same(reordered.as_bytes());
    for (usual, others) in cases {
        assert!(good.contains(usual), "{usual}");
        for other in others {
            same(good.replacen(usual, other, 1).as_bytes());
            same(reordered.replacen(usual, other, 1).as_bytes());
        }
    }
}

/// A place where a document is damaged, how much of it is taken away there, and what comes instead.
fn damage() -> impl Strategy<Value = (prop::sample::Index, usize, Vec<u8>)> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(&[" ", ",", "]", "[", "{", "}", "\"", ":", "0", "9", "-", "a", "\\u0030", "\"pages\":[", "\"k\":", "{\"ix\":7"][..])
            .prop_map(|text| text.as_bytes().to_vec()),
        Just(Vec::new()),
    ];
    (any::<prop::sample::Index>(), prop_oneof![0_usize..3, 100..300_usize], piece)
}

proptest! {
    #[test]
    fn damaged_documents_are_read_as_a_parser_reads_them(
        ixs in prop::collection::btree_set(0_u64..300, 0..5),
        repeat: bool,
        damages in prop::collection::vec(damage(), 0..4),
    ) {
        let sequences = vec![sequence("a", &ixs.iter().copied().collect::<Vec<u64>>(), 3)];
        let mut document = PageManifest::new(META, ixs.into_iter().map(page).collect(), sequences).unwrap().to_json();
        if repeat {
            document.extend_from_within(1..);
        }
        for (at, len, piece) in damages {
            let at = at.index(document.len() + 1);
            let end = (at + len).min(document.len());
            document.splice(at..end, piece);
        }
        same(&document);
    }

    #[test]
    fn documents_round_trip(ixs: std::collections::BTreeSet<u32>, names: std::collections::BTreeSet<String>, fill in 0_u64..16) {
        let pages: Vec<Page> = ixs.iter().rev().map(|ix| page(u64::from(*ix))).collect();
        let all: Vec<u64> = ixs.iter().map(|ix| u64::from(*ix)).collect();
        let sequences = names.iter().map(|name| sequence(name, &all, fill)).collect();
        let manifest = PageManifest::new(META, pages, sequences).unwrap();
        let printed = manifest.to_json();
        prop_assert_eq!(&PageManifest::parse(&printed).unwrap(), &manifest);
        prop_assert_eq!(listed::<Vec<Page>>(&printed).unwrap().unwrap(), manifest.pages());
        let value: serde_json::Value = serde_json::from_slice(&printed).unwrap();
        prop_assert_eq!(&PageManifest::parse(&serde_json::to_vec_pretty(&value).unwrap()).unwrap(), &manifest);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = (PageManifest::parse(&bytes), listed::<Vec<Page>>(&bytes));
    }
}
