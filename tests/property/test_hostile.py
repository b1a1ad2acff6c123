"""A registry that is hostile: whatever its objects say, a pull is refused with one clear error, or what arrived is sound.

Manifests are signed anew with the key that everybody has, so that damage gets past the signature and to the parsers. The parsers
of the core are under `tests/fuzz` besides.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfimg
from pfimg import effects, signing
from pfimg.keys import SigningKey
from pfimg.registries.oci import manifest as oci
from pfimg.registries.oci.manifest import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

META = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")
DEEP = 5_000

atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["../../x", "/etc/passwd", "sha256:" + "0" * 64, "blake3:" + "0" * 64, "sha256:" + "A" * 64, "\x00", "\ud800"]
    )
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=5), st.integers(), max_size=3)
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [found for below in value.values() for found in places(below)]
    if isinstance(value, list):
        return [(value, key) for key in range(len(value))] + [found for below in value for found in places(below)]
    return []


@st.composite
def damaged(draw: st.DrawFn, document: bytes) -> bytes:
    """A document with bytes changed or, if it is JSON, a value, a key twice, or more depth than anybody needs."""
    try:
        values = json.loads(document)
    except (ValueError, RecursionError):
        values = None
    kind = draw(
        st.sampled_from(["bytes", "cut", "nothing", "noise"] + (["value", "key", "twice", "deep"] if places(values) else []))
    )
    if kind == "value":
        container, key = draw(st.sampled_from(places(values)))
        container[key] = draw(atoms)
    elif kind == "key":
        container, key = draw(st.sampled_from(places(values)))
        del container[key]
    elif kind == "twice":
        name, atom = json.dumps(next(iter(values))), json.dumps(draw(atoms))
        return document.replace(b"{", f"{{{name}:{atom},".encode(), 1)
    elif kind == "deep":
        container, key = draw(st.sampled_from(places(values)))
        container[key] = "@"
        return json.dumps(values).encode().replace(b'"@"', b"[" * DEEP + b"]" * draw(st.sampled_from([0, DEEP])), 1)
    else:
        return damaged_bytes(draw, kind, document)
    return json.dumps(values, separators=(",", ":")).encode(errors="surrogatepass")


def damaged_bytes(draw: st.DrawFn, kind: str, document: bytes) -> bytes:
    if kind == "bytes" and document:
        at = draw(st.integers(0, len(document) - 1))
        return document[:at] + bytes([document[at] ^ draw(st.integers(1, 255))]) + document[at + 1 :]
    if kind == "cut":
        return document[: draw(st.integers(0, len(document)))]
    return b"" if kind == "nothing" else draw(st.binary(max_size=200))


class Hostile(NamedTuple):
    root: Path
    objects: dict[str, bytes]
    target: pfimg.PfStore


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    """A registry of two images, one of them packed; its objects; and a store to pull into."""
    base = tmp_path_factory.mktemp("hostile")
    (base / "tree").mkdir()
    (base / "tree/file").write_text("content")
    (base / "tree/link").symlink_to("file")
    store = pfimg.PfStore.open(base / "store")
    pages = np.arange(3 * META.page_bytes, dtype=np.uint16).astype(np.uint8).reshape(3, -1)
    cache = store.put_pages(META, pages, pages + 1, logical_seqs=[pfimg.LogicalSeq(id="a", page_ixs=[0, 2], fill_in_last_page=1)])
    image = pfimg.snapshot(store, agent="tester", fs_root=base / "tree", cache=cache, env={})
    root = base / "registry"
    pfimg.push(store, image, f"file://{root}")
    pfimg.push(store, image, f"file://{root}#packed", layout="packed")
    objects = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return Hostile(root, objects, pfimg.PfStore.open(base / "target", durability="none"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_registry_holds_nothing_unsound_arrives(hostile: Hostile, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(hostile.objects)))
    content = data.draw(damaged(hostile.objects[name]))
    objects = {name: content}
    if name == "manifest.json" and data.draw(st.booleans(), label="signed"):
        objects["manifest.json.sig"] = signing.sign(content, signing.PUBLIC_KEY)
    for at, replaced in objects.items():
        (hostile.root / at).write_bytes(replaced)
    try:
        for suffix in ("", "#packed"):
            ref = f"file://{hostile.root}{suffix}"
            try:
                pfimg.exists(ref)
                pfimg.list_images(ref)
                found = pfimg.pull(ref, hostile.target).image
            except pfimg.PfimgError as error:
                told = str(error)
                assert told.strip()
                assert "\n" not in told
                assert list(hostile.target.images()) == []
            else:
                assert hostile.target.verify().ok
                hostile.target.remove_image(found)
            hostile.target.gc(grace_seconds=0)
    finally:
        for at in objects:
            (hostile.root / at).write_bytes(hostile.objects[at])


MEBIBYTE = 1 << 20
BLOCK = 128 << 10
# The largest tree or page manifest.
DOCUMENT = 1 << 30
# By how much memory may grow, whatever a frame unpacks to: threads hold a few of their files and pieces.
BOUND = 96 * MEBIBYTE


def bomb(byte: bytes, blocks: int) -> bytes:
    """A frame of so many blocks that each say "this byte, 131,072 times"; how much that comes to is nowhere told."""
    last, repeated, magic, window = 1, 1 << 1, "28b52ffd", "0038"
    block, end = ((repeated | BLOCK << 3 | at).to_bytes(3, "little") + byte for at in (0, last))
    return bytes.fromhex(magic + window) + block * (blocks - 1) + end


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")


def digest_of(pieces: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return f"sha256:{hashed.hexdigest()}"


# The peak of this program's own memory: what `getrusage` tells begins with that of the process that started it.
PULL = """
import re, sys, pfimg
peak = lambda: int(re.search("VmHWM:\\s*([0-9]+)", open("/proc/self/status").read())[1])
store = pfimg.PfStore.open(sys.argv[2])
before = peak()
try:
    pfimg.pull(sys.argv[1], store)
except pfimg.PfimgError as error:
    kind = error.code
else:
    kind = "pulled"
print(kind, peak() - before)
"""


def pull_a_bomb(tmp_path: Path, frame: bytes, digest: str, layer: str) -> tuple[str, int]:
    """Pulls an image of which a layer is that frame; returns what came of it, and by how many bytes the memory grew."""
    store = pfimg.PfStore.open(tmp_path / "store", durability="none")
    plain = store.get_manifest(pfimg.snapshot(store, agent="tester"))
    registry = tmp_path / "registry"
    pfimg.push(store, plain.id, f"file://{registry}")
    manifest = plain.to_json().replace(getattr(plain.world, layer).encode(), digest.encode())
    (registry / "manifest.json").write_bytes(manifest)
    (registry / "manifest.json.sig").write_bytes(signing.sign(manifest, signing.PUBLIC_KEY))
    path = registry / f"blobs/sha256/{digest[7:9]}/{digest[7:]}.zst"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(frame)
    command = [sys.executable, "-c", PULL, f"file://{registry}", str(tmp_path / "target")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
    outcome, grown = done.stdout.split()
    # What it unpacks to is nowhere written either.
    written = sum(path.stat().st_size for path in (tmp_path / "target").rglob("*") if path.is_file())
    assert written < 2 * len(frame) + MEBIBYTE
    shown = [image for image, _ in pfimg.PfStore.open(tmp_path / "target").images()]
    assert shown == ([digest_of([manifest])] if outcome == "pulled" else [])
    return outcome, int(grown) * 1024


@needs_proc
def test_a_frame_that_unpacks_to_more_than_a_blob_may_have_is_refused(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    frame = bomb(b"\0", (16 << 30) // BLOCK + 1)
    assert len(frame) < MEBIBYTE
    # Refused for its length, whatever its digest: nobody need wait here for the right one.
    outcome, grown = pull_a_bomb(tmp_path, frame, "sha256:" + "1" * 64, "env")
    assert outcome == "limit"
    record_testsuite_property("bomb.bytes", len(frame))
    record_testsuite_property("bomb.grown", grown)
    assert grown < BOUND


@needs_proc
def test_a_document_that_unpacks_to_more_than_a_document_may_have_is_refused(tmp_path: Path) -> None:
    blocks = DOCUMENT // BLOCK + 1
    frame = bomb(b"{", blocks)
    assert len(frame) < MEBIBYTE // 16
    outcome, grown = pull_a_bomb(tmp_path, frame, digest_of(repeat(b"{" * BLOCK, blocks)), "fs")
    assert outcome == "limit"
    # A document is read as a whole, up to its cap.
    assert grown < DOCUMENT + BOUND


OCI = [
    oci.published(
        Stored("sha256:" + "1" * 64, 3),
        Stored("sha256:" + "2" * 64, 4),
        [("sha256:" + "3" * 64, Stored("sha256:" + "4" * 64, 5))],
        "x",
    ),
    oci.packed(
        Stored("sha256:" + "1" * 64, 3),
        Stored("sha256:" + "2" * 64, 4),
        Stored("sha256:" + "3" * 64, 5),
        [Stored("sha256:" + "4" * 64, 6)],
        "x",
    ),
]


@given(st.sampled_from(OCI).flatmap(damaged))
def test_a_hostile_manifest_of_an_oci_registry(content: bytes) -> None:
    try:
        oci.parse(content, "somewhere")
    except pfimg.PfimgError as error:
        assert "somewhere" in str(error)  # noqa: PT017 - that it is raised is not what is tested


MANIFEST = b"the bytes of a manifest"


KEYS = (SigningKey.from_text("ours"), SigningKey.generate("ed25519"), SigningKey.generate("ecdsa-p256-sha256"))


@given(st.sampled_from(KEYS), st.data())
def test_a_hostile_signature_never_counts(key: SigningKey, data: st.DataObject) -> None:
    original = json.loads(signing.sign(MANIFEST, key))
    signature = data.draw(damaged(signing.sign(MANIFEST, key)))
    try:
        signing.verify(MANIFEST, signature, signing.trust_policy(key, None))
    except pfimg.SignatureError:
        return
    # It counts only where what it says is what we said; of the key that it names beside that, nothing depends.
    original.pop("public_key", None)
    assert {key: json.loads(signature)[key] for key in original} == original


@given(
    st.text()
    | st.sampled_from(["file", "s3", "gs", "az", "hf", "ipfs", "oci", "http", "https"]).flatmap(
        lambda scheme: st.text().map(f"{scheme}://".__add__)
    )
)
def test_any_text_as_a_reference(text: str) -> None:
    try:
        ref = pfimg.ImageRef.parse(text)
    except (pfimg.BadRef, pfimg.UnsupportedScheme):
        return
    assert pfimg.ImageRef.parse(str(ref)) == ref


@given(
    st.binary(max_size=300)
    | damaged(b'{"entries":0,"kind":"effects.ledger.v1","session_secret_hex":"00","verification_mode":"tamper-detection"}\n')
)
def test_any_bytes_as_a_ledger(content: bytes) -> None:
    try:
        effects.parse(content)
    except pfimg.FormatError as error:
        assert str(error)  # noqa: PT017 - that it is raised is not what is tested
