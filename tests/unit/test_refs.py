"""Image references of every scheme: what they parse to, what they print, what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg.errors import BadRef, UnsupportedScheme
from pfimg.registries.refs import SCHEMES, FileRef, HfRef, HttpRef, ImageRef, IpfsRef, OciRef, S3Ref

DIGEST = "sha256:" + "0a" * 32

# Reference, what it parses to, and its canonical form where that is another.
GOOD = [
    ("file:///", FileRef(Path("/")), None),
    ("file:///srv/images/one", FileRef(Path("/srv/images/one")), None),
    ("file:///srv/images/one/", FileRef(Path("/srv/images/one")), "file:///srv/images/one"),
    ("file:///srv//images/./one", FileRef(Path("/srv/images/one")), "file:///srv/images/one"),
    ("file:///srv/../one", FileRef(Path("/srv/../one")), None),
    ("file:///a b/größe%20x", FileRef(Path("/a b/größe%20x")), None),
    ("file:///a:b@c", FileRef(Path("/a:b@c")), None),
    ("file:///dir#name", FileRef(Path("/dir"), "name"), None),
    ("file:///dir#a#b", FileRef(Path("/dir#a"), "b"), None),
    ("file:///dir#a/b", FileRef(Path("/dir#a/b")), None),
    ("file:///dir#a/", FileRef(Path("/dir#a")), None),
    ("file:///dir#", FileRef(Path("/dir#")), None),
    ("file:///dir#with space", FileRef(Path("/dir#with space")), None),
    ("file:///dir#" + "x" * 128, FileRef(Path("/dir"), "x" * 128), None),
    ("file:///dir#" + "x" * 129, FileRef(Path("/dir#" + "x" * 129)), None),
    ("s3://bucket", S3Ref("bucket"), None),
    ("s3://bucket/", S3Ref("bucket"), "s3://bucket"),
    ("s3://bucket/agents/one/", S3Ref("bucket", "agents/one"), "s3://bucket/agents/one"),
    ("s3://bucket#name", S3Ref("bucket", name="name"), None),
    ("s3://bucket/a:b@c/d#v1.0", S3Ref("bucket", "a:b@c/d", "v1.0"), None),
    ("gs://bucket/x", S3Ref("bucket", "x", scheme="gs"), None),
    ("az://container/x#n", S3Ref("container", "x", "n", scheme="az"), None),
    ("hf://alice/agent", HfRef("alice", "agent"), None),
    ("hf://alice/agent:main", HfRef("alice", "agent"), "hf://alice/agent"),
    ("hf://alice/refactor-2026.05_05:v1", HfRef("alice", "refactor-2026.05_05", "v1"), None),
    ("hf://alice/agent@refs/pr/1", HfRef("alice", "agent", revision="refs/pr/1"), None),
    ("hf://alice/agent:v1@abc123#name", HfRef("alice", "agent", "v1", "abc123", "name"), None),
    ("ipfs://", IpfsRef(), None),
    ("ipfs://bafyabc", IpfsRef("bafyabc"), None),
    ("ipfs://bafyabc/a/b/", IpfsRef("bafyabc", "a/b"), "ipfs://bafyabc/a/b"),
    ("ipfs://images.example.org/one", IpfsRef("images.example.org", "one"), None),
    ("oci://registry.example/repo", OciRef("registry.example", "repo"), None),
    ("oci://localhost:5000/agents/one", OciRef("localhost", "agents/one", 5000), None),
    ("oci://localhost:5000/agents/one:latest", OciRef("localhost", "agents/one", 5000), "oci://localhost:5000/agents/one"),
    ("oci://host/repo:v3", OciRef("host", "repo", tag="v3"), None),
    (f"oci://host/repo@{DIGEST}", OciRef("host", "repo", digest=DIGEST), None),
    (f"oci://host:80/a__b/c-d.e:v3@{DIGEST}", OciRef("host", "a__b/c-d.e", 80, "v3", DIGEST), None),
    ("oci://[::1]:5000/repo", OciRef("[::1]", "repo", 5000), None),
    ("https://cdn.example", HttpRef("cdn.example"), None),
    ("https://cdn.example/", HttpRef("cdn.example"), "https://cdn.example"),
    ("http://127.0.0.1:8080/a/b/", HttpRef("127.0.0.1", 8080, "/a/b", "http"), "http://127.0.0.1:8080/a/b"),
    ("https://cdn.example/a%20b/@c:d", HttpRef("cdn.example", None, "/a%20b/@c:d"), None),
]

BAD = [
    "",
    "agent",
    "/srv/images",
    "file:/srv",
    "file://",
    "file://relative/dir",
    "file://~/dir",
    "file:///a\0b",
    "s3://",
    "s3:///prefix",
    "s3://bu cket",
    "s3://bucket/a\nb",
    "hf://alice",
    "hf://alice/",
    "hf:///agent",
    "hf://alice/agent/more",
    "hf://alice/agent:",
    "hf://alice/agent@",
    "hf://alice/agent:v1:v2",
    "hf://alice/agent:a/b",
    "hf://alice/agent@v1:x",
    "hf://alice/agent#",
    "ipfs:///path",
    "ipfs://bafyabc#name",
    "oci://host",
    "oci://host/",
    "oci://host:5000",
    "oci://host:x/repo",
    "oci://host:0/repo",
    "oci://host:65536/repo",
    "oci://host/Repo",
    "oci://host/repo:",
    "oci://host/repo:-x",
    "oci://host/repo@sha256:0a",
    "oci://host/repo@" + DIGEST.upper(),
    "oci://host/repo#name",
    "http://",
    "https:///path",
    "https://host:99999/path",
    "https://host/a b",
    "https://host/path#name",
]


@pytest.mark.parametrize(("url", "value", "canonical"), GOOD)
def test_a_reference_parses_and_prints(url: str, value: object, canonical: str | None) -> None:
    found = ImageRef.parse(url)
    assert found == value
    assert str(found) == (canonical or url)
    assert ImageRef.parse(str(found)) == found


@pytest.mark.parametrize("url", BAD)
def test_a_malformed_reference_is_refused(url: str) -> None:
    with pytest.raises(BadRef) as caught:
        ImageRef.parse(url)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("url", ["ftp://host/x", "FILE:///x", "://x", "s3 ://bucket"])
def test_another_scheme_is_unsupported(url: str) -> None:
    with pytest.raises(UnsupportedScheme, match="not known"):
        ImageRef.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/path",
        "https://host/path?token=hunter2",
        "oci://me:hunter2@host/repo",
        "s3://me:hunter2@bucket/x",
        "ftp://me:hunter2@host/x",
        "hf://hunter2@alice/agent",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises((BadRef, UnsupportedScheme)) as caught:
        ImageRef.parse(url)
    assert "hunter2" not in repr(caught.value)


def test_the_error_shows_the_form() -> None:
    with pytest.raises(BadRef, match=r"'hf://alice' is not of the form hf://user/repo\[:tag\]\[@revision\]\[#name\]"):
        ImageRef.parse("hf://alice")


def test_values_are_checked_too() -> None:
    with pytest.raises(BadRef, match="absolute"):
        FileRef(Path("relative"))
    for make in (
        lambda name: FileRef(Path("/x"), name),
        lambda name: S3Ref("b", name=name),
        lambda name: HfRef("u", "r", name=name),
    ):
        for name in ("", "../x", "a/b", "x" * 129):
            with pytest.raises(BadRef, match="no name"):
                make(name)
    with pytest.raises(BadRef, match="no port"):
        OciRef("host", "repo", 0)


@given(st.sampled_from([*SCHEMES, "ftp", ""]), st.text(st.sampled_from("ab/:@#.-_% 0?\n\0[]é")))
def test_whatever_parses_prints_what_parses_to_the_same(scheme: str, rest: str) -> None:
    try:
        found = ImageRef.parse(f"{scheme}://{rest}")
    except (BadRef, UnsupportedScheme):
        return
    assert ImageRef.parse(str(found)) == found
    assert found.scheme == scheme


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True),
)
def test_every_directory_has_a_reference(path: str, name: str | None) -> None:
    ref = FileRef(Path("/" + path), name)
    assert ImageRef.parse(str(ref)) == ref
