//! What a CAR begins with: its roots, in DAG-CBOR.
//!
//! Of CBOR only the one form is read that DAG-CBOR allows for a map of `roots` and `version`.

use super::cid::Cid;
use super::wire::put_varint;

/// Tag of a CID.
const TAG: u64 = 42;

/// The header of a CAR of version 1 with one root, and its length before it.
pub fn encode(root: &Cid) -> Vec<u8> {
    let cid = root.to_bytes();
    let mut header = b"\xa2\x65roots\x81\xd8\x2a\x58".to_vec();
    // A zero stands before the bytes of a CID.
    header.push(u8::try_from(cid.len() + 1).expect("a CID of a SHA-256 is short"));
    header.push(0);
    header.extend_from_slice(&cid);
    header.extend_from_slice(b"\x67version\x01");
    let mut all = Vec::with_capacity(1 + header.len());
    put_varint(&mut all, header.len() as u64);
    all.extend_from_slice(&header);
    all
}

/// The roots that a header names; the error says what is wrong with it.
pub fn parse(mut header: &[u8]) -> Result<Vec<Cid>, String> {
    let rest = &mut header;
    let (mut roots, mut version) = (None, None);
    for _ in 0..expect(rest, MAP)? {
        let key = expect(rest, TEXT).and_then(|length| bytes(rest, length))?;
        match key {
            b"roots" => {
                let count = expect(rest, ARRAY)?;
                roots = Some((0..count).map(|_| root(rest)).collect::<Result<Vec<Cid>, String>>()?);
            }
            b"version" => version = Some(expect(rest, NUMBER)?),
            _ => return Err("it has a field that is not known".into()),
        }
    }
    match version {
        Some(1) if rest.is_empty() => roots.ok_or_else(|| "it has no roots".into()),
        Some(1) => Err("more bytes than its own follow it".into()),
        Some(other) => Err(format!("CAR version {other} is not read, only 1")),
        None => Err("it has no version".into()),
    }
}

const NUMBER: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAGGED: u8 = 6;

fn root(rest: &mut &[u8]) -> Result<Cid, String> {
    if expect(rest, TAGGED)? != TAG {
        return Err("a root is no CID".into());
    }
    match expect(rest, BYTES).and_then(|length| bytes(rest, length))? {
        [0, cid @ ..] => Cid::from_bytes(cid).map_err(|error| error.to_string()),
        _ => Err("a root is no CID".into()),
    }
}

/// The argument of an item, which must be of this major type.
fn expect(rest: &mut &[u8], major: u8) -> Result<u64, String> {
    let malformed = || "it is not the DAG-CBOR of roots and version".to_owned();
    let first = *rest.split_off_first().ok_or_else(malformed)?;
    if first >> 5 != major {
        return Err(malformed());
    }
    let more = match first & 31 {
        short @ 0..24 => return Ok(u64::from(short)),
        wide @ 24..28 => 1 << (wide - 24),
        _ => return Err(malformed()),
    };
    Ok(bytes(rest, more)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn bytes<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    usize::try_from(length).ok().and_then(|length| rest.split_off(..length)).ok_or_else(|| "it ends too soon".into())
}

#[cfg(test)]
mod tests {
    use super::super::cid::Codec;
    use super::*;

    fn of(items: &[&[u8]]) -> Result<Vec<Cid>, String> {
        parse(&items.concat())
    }

    #[test]
    fn the_header_is_read_as_it_was_written_and_no_beginning_of_it() {
        let root = Cid::of(Codec::DagPb, b"");
        let header = encode(&root);
        assert_eq!(usize::from(header[0]), header.len() - 1);
        assert_eq!(parse(&header[1..]).unwrap(), [root]);
        for end in 1..header.len() {
            assert!(parse(&header[1..end]).is_err(), "{end}");
        }
        assert!(parse(&[&header[1..], &[0]].concat()).unwrap_err().contains("more bytes"));
    }

    #[test]
    fn other_headers_are_refused() {
        assert_eq!(of(&[b"\xa2\x67version\x01", b"\x65roots\x80"]).unwrap(), []);
        assert!(of(&[b"\xa1\x67version\x02"]).unwrap_err().contains("CAR version 2"));
        assert!(of(&[b"\xa1\x67version\x01"]).unwrap_err().contains("no roots"));
        assert!(of(&[b"\xa1\x65roots\x80"]).unwrap_err().contains("no version"));
        assert!(of(&[b"\xa1\x65other\x01"]).unwrap_err().contains("not known"));
        assert!(of(&[b"\xa2\x65roots\x81\xd8\x2b"]).unwrap_err().contains("no CID"));
        assert!(of(&[b"\xa2\x65roots\x81\xd8\x2a\x41\x01"]).unwrap_err().contains("no CID"));
        for wrong in [&b""[..], b"\x80", b"roots", b"\xa1\x65roots\x9b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xbf"] {
            assert!(parse(wrong).is_err());
        }
    }
}
