"""What comes from others to the parsers in Python: signatures, files of keys and of whom to trust, references, names, digests.

What is not accepted is an error of pfimg, in one line, and nothing else; what is accepted means what it says. Inputs are those of
`corpus`, as they are and damaged, and any. `PFIMG_FUZZ_EXAMPLES` has more of them tried; `make fuzz` sets it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.property.test_hostile import damaged

import pfimg
from pfimg import keys, signing
from pfimg.keys import PublicKey, SigningKey
from pfimg.registries import refs
from pfimg.registries.oci import referrer

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).with_name("corpus")
MANIFEST = b"the bytes of a manifest"
FILES = {kind: {path.name: path.read_bytes() for path in (CORPUS / kind).iterdir()} for kind in ("signatures", "keys")}
LINES = {kind: (CORPUS / f"{kind}.txt").read_text().splitlines() for kind in ("references", "names")}
# Arguments that are no UTF-8 come to Python with surrogates.
WORDS = st.text(max_size=40) | st.binary(max_size=40).map(os.fsdecode)

some = settings(
    max_examples=int(os.environ.get("PFIMG_FUZZ_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def files(kind: str) -> st.SearchStrategy[bytes]:
    """Files of the corpus, as they are and damaged; two of them joined; and any bytes."""
    known = st.sampled_from(sorted(FILES[kind])).map(FILES[kind].__getitem__)
    return known | known.flatmap(damaged) | st.tuples(known, known).map(b"\n".join) | st.binary(max_size=300)


@st.composite
def words(draw: st.DrawFn, kind: str) -> str:
    """Lines of the corpus, of which a part may be another's or any, and any text."""
    known = draw(st.sampled_from(LINES[kind]))
    if draw(st.booleans()):
        return known
    start, end = sorted(draw(st.tuples(st.integers(0, len(known)), st.integers(0, len(known)))))
    return known[:start] + draw(WORDS | st.sampled_from(LINES[kind])) + known[end:]


def accepted(call: Callable[[], Any]) -> Any:
    """What a call returns; None where it is refused, as it may be."""
    try:
        return call()
    except pfimg.PfimgError as error:
        told = str(error)
        assert told.strip()
        assert "\n" not in told
        return None


@some
@given(files("signatures"))
def test_any_bytes_as_a_signature(content: bytes) -> None:
    if (document := accepted(lambda: signing.parse(content))) is not None:
        values = json.loads(content)
        assert (document.algorithm, document.manifest_digest) == (values["algorithm"], values["manifest_digest"])
        assert (document.public_key is None) == (document.algorithm == keys.HMAC)
    accepted(lambda: signing.show("file:///x", MANIFEST, content))
    assert signing.covers(MANIFEST, content) in (True, False)
    verdict = accepted(lambda: signing.verify(MANIFEST, content, signing.Trust(self_signed=True)))
    assert verdict is None or verdict.status == "self-signed"
    # Nobody is trusted here who could have made one of these.
    assert accepted(lambda: signing.verify(MANIFEST, content, signing.Trust((SigningKey.from_text("other"),)))) is None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "file"


@some
@given(files("keys"))
def test_any_bytes_as_a_file_of_keys(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found = accepted(lambda: keys.read_keys(path))
    for key in found or ():
        # What is, or nearly is, a key of PEM is never taken for a secret.
        if isinstance(key, SigningKey) and key.algorithm == keys.HMAC:
            assert b"-----BEGIN " not in content
            assert content.startswith(key.secret)
        if isinstance(key, PublicKey):
            assert PublicKey.from_der(key.der) == key
            assert not key.is_signed(MANIFEST, b"\0" * 64)
        elif key.public_key is not None:
            assert key.public_key.is_signed(MANIFEST, key.sign(MANIFEST))
    signer = accepted(lambda: SigningKey.from_file(path))
    assert signer is None or signer in (found or ())


@some
@given(files("keys"))
def test_any_bytes_as_a_file_of_whom_to_trust(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    given_keys = accepted(lambda: signing.trust_policy(path, None))
    assert given_keys is None or (given_keys.keys and not given_keys.self_signed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFIMG_TRUST", str(path))
        standing = accepted(lambda: signing.trust_policy(None, None))
    # Everybody may read the standing policy, so that there is no secret in it.
    assert standing is None or all(isinstance(key, PublicKey) for key in standing.keys)
    assert standing is None or (standing == given_keys and standing.keys)


@some
@given(words("references"))
def test_any_text_as_a_reference(text: str) -> None:
    if (ref := accepted(lambda: pfimg.ImageRef.parse(text))) is None:
        return
    assert pfimg.ImageRef.parse(str(ref)) == ref
    name = getattr(ref, "name", None)
    assert name is None or re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name)
    assert "\0" not in str(ref)
    assert not isinstance(ref, refs.FileRef) or ref.path.is_absolute()
    # Credentials are refused, so that no reference that is shown has any.
    assert "@" not in text.partition("://")[2].partition("/")[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path_factory.mktemp("named") / "store", durability="none")


@some
@given(words("names"))
def test_any_text_as_the_name_of_an_image_or_a_pin(store: pfimg.PfStore, name: str) -> None:
    ref = accepted(lambda: refs.FileRef(Path("/registry"), name))
    assert (ref is not None) == bool(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name))
    assert ref is None or pfimg.ImageRef.parse(str(ref)) == ref
    digest = store.put(b"pinned")
    pins = store.root / "pins"
    for left in pins.glob("*"):
        left.unlink()
    before = set(store.root.parent.rglob("*"))
    accepted(lambda: store.pin(name, digest))
    made = set(store.root.parent.rglob("*")) - before - {pins}
    # What was made is what is listed.
    assert made == {pins / pin for pin in store.pins()}
    assert made <= {pins / name}


@some
@given(WORDS | st.from_regex(r"(sha256|blake3|SHA256):[0-9a-fA-F]{62,66}") | st.just("sha256:" + "0" * 64))
def test_any_text_as_a_digest_or_an_image(store: pfimg.PfStore, text: str) -> None:
    for ask in (store.get, store.has, store.get_manifest, store.remove_image, lambda text: store.pin("pin", text)):
        assert not accepted(lambda ask=ask: ask(text))  # type: ignore[misc]
    accepted(lambda: pfimg.push(store, text, "file:///dev/null/registry"))
    accepted(lambda: pfimg.push(store, "sha256:" + "0" * 64, "file:///dev/null/registry", expect=text))


@some
@given(
    st.binary(max_size=200)
    | damaged(b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"sha256:00"}]}')
)
def test_any_bytes_as_an_index_of_referrers(content: bytes) -> None:
    entries = accepted(lambda: referrer._entries(content, "tag"))
    assert entries is None or all(isinstance(entry, dict) for entry in entries)
