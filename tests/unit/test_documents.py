"""Manifests, page manifests and trees as Python values: kept bytes, equality, pickling, sequences, precise errors."""

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

import pfimg
from pfimg import _core

A, B, C = (pfimg.digest_of(bytes([n])) for n in range(3))
META = pfimg.CacheMeta(page_size_tokens=16, n_layers=2, n_heads=4, head_dim=8, dtype="bf16")


def manifest(**changes: Any) -> pfimg.Manifest:
    fields: dict[str, Any] = {
        "agent": pfimg.AgentInfo("agent", "1", "print"),
        "model": pfimg.ModelLayer(A, B),
        "cache": pfimg.CacheLayer(C),
        "world": pfimg.WorldLayer(A, B, C),
        "effects": pfimg.EffectsLayer(A),
        "trace": pfimg.TraceLayer(B),
        "created_at": "2026-05-05T12:34:56Z",
        "parents": [C],
    }
    return pfimg.Manifest(**(fields | changes))


def pages(count: int = 5) -> pfimg.PageManifest:
    listed = [pfimg.Page(ix, A, B) for ix in reversed(range(count))]
    return pfimg.PageManifest(META, listed, [pfimg.LogicalSeq("s", range(count), 3), pfimg.LogicalSeq("a", [])])


def tree() -> pfimg.FsTree:
    return pfimg.FsTree(
        [
            pfimg.FsTreeEntry("a-b", "0644", 3, "file", A),
            pfimg.FsTreeEntry("a", "0755", 0, "dir"),
            pfimg.FsTreeEntry("a/link", "0777", 1, "symlink", B, "x"),
        ]
    )


SMALL = [
    pfimg.AgentInfo("agent", fingerprint="print"),
    pfimg.ModelLayer(A, B),
    pfimg.CacheLayer(A, "layout"),
    pfimg.WorldLayer(A, B, C),
    pfimg.EffectsLayer(A),
    pfimg.TraceLayer(A),
    META,
    pfimg.Page(7, A, B),
    pfimg.LogicalSeq("s", [2, 1], 3),
    pfimg.FsTreeEntry("a/link", "0777", 1, "symlink", B, "x"),
    pfimg.FsTreeEntry("d", "1777", 0, "dir"),
]
DOCUMENTS = [manifest(), pages(), tree()]


@pytest.mark.parametrize("value", SMALL, ids=lambda value: type(value).__name__)
def test_small_values_compare_hash_copy_and_print_as_what_they_hold(value: Any) -> None:
    again = eval(repr(value), vars(pfimg))  # a repr is the expression that makes the value
    assert again == value
    assert hash(again) == hash(value)
    assert again is not value
    for twin in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert twin == value
    assert value != object()
    assert len({value, again, *SMALL}) == len(SMALL)


@pytest.mark.parametrize("value", [*SMALL, *DOCUMENTS], ids=lambda value: type(value).__name__)
def test_values_are_frozen(value: Any) -> None:
    name = next(name for name in dir(value) if not name.startswith("_"))
    with pytest.raises(AttributeError):
        setattr(value, name, 1)
    with pytest.raises(AttributeError):
        value.new_attribute = 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda value: type(value).__name__)
def test_documents_survive_json_and_pickle(document: Any) -> None:
    data = document.to_json()
    again = type(document).from_json(data)
    assert again == document == pickle.loads(pickle.dumps(document)) == copy.deepcopy(document)
    assert again.to_json() == data
    assert bool(document)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_the_bytes_that_were_read_are_kept(document: Any, form: Any) -> None:
    # Another order of keys, spaces, and fields that nobody knows.
    fields = json.loads(document.to_json())
    data = json.dumps({"note": [1, None, "ü"], **dict(reversed(fields.items()))}, indent=1).encode()
    source = form(data)
    read = type(document).from_json(source)
    if isinstance(source, bytearray):
        source[:] = b" " * len(source)
    assert read.to_json() == data
    assert pickle.loads(pickle.dumps(read)).to_json() == data


def test_a_manifest_is_what_its_bytes_are() -> None:
    read = pfimg.Manifest.from_json(b" " + manifest().to_json())
    assert read != manifest()
    assert read.id == pfimg.digest_of(read.to_json()) != manifest().id
    assert {manifest(), manifest(), read} == {manifest(), read}
    assert (read.agent, read.world, read.parents) == (manifest().agent, manifest().world, (C,))


def test_a_manifest_names_its_layers_in_walk_order() -> None:
    made = manifest()
    assert pfimg.manifest_blob_digests(made) == [A, B, C]
    assert (made.model.base, made.model.diff, made.cache.manifest, made.effects.ledger, made.trace.messages) == (A, B, C, A, B)
    assert made.cache.layout == "paged-batchinvariant-v1"
    assert made.media_type == "application/vnd.processfork.image.v1+json"


def test_digests_of_the_layers_decide_the_media_type() -> None:
    x = "blake3:" + "0" * 64
    layers = {
        "model": pfimg.ModelLayer(x, x),
        "cache": pfimg.CacheLayer(x),
        "world": pfimg.WorldLayer(x, x, x),
        "effects": pfimg.EffectsLayer(x),
        "trace": pfimg.TraceLayer(x),
    }
    made = manifest(**layers, parents=[])
    assert made.media_type == "application/vnd.pfimg.image.v1+json"
    assert made.id.startswith("blake3:")
    with pytest.raises(pfimg.FormatError) as caught:
        manifest(**layers)
    assert caught.value.field == "parents[0]"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"created_at": "2026-05-05 12:34:56"}, "created_at"),
        ({"parents": [A, B, C]}, "parents"),
        ({"schema_version": 2}, "schema_version"),
        ({"media_type": "text/plain"}, "media_type"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(pfimg.FormatError) as caught:
        manifest(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000])
def test_what_is_no_document_is_refused(document: Any, damage: bytes) -> None:
    with pytest.raises(pfimg.FormatError):
        type(document).from_json(damage)


def test_a_format_error_says_where() -> None:
    data = pages().to_json().replace(B.encode(), b"sha256:short", 1)
    with pytest.raises(pfimg.FormatError) as caught:
        pfimg.PageManifest.from_json(data)
    assert caught.value.field == "pages[0].v"
    assert caught.value.offset is not None
    assert data[caught.value.offset :].startswith(b'"sha256:short"')


@pytest.mark.parametrize("members", [pages().pages, tree().entries], ids=["Pages", "Entries"])
def test_lists_of_members_are_sequences(members: Any) -> None:
    listed = [members[n] for n in range(len(members))]
    assert isinstance(members, Sequence)
    assert list(members) == listed
    assert list(reversed(members)) == listed[::-1]
    for part in (slice(None), slice(1, None, 2), slice(None, None, -1), slice(-2, 99), slice(3, 1), slice(-99, 2)):
        assert members[part] == listed[part]
    assert members[-1] == listed[-1]
    assert listed[1] in members
    assert members.index(listed[1]) == 1
    assert members.count(listed[0]) == 1
    assert object() not in members
    for outside in (len(members), -len(members) - 1, 2**70):
        with pytest.raises(IndexError):
            members[outside]
    with pytest.raises(TypeError):
        _ = members["0"]  # type: ignore[call-overload]


def test_members_come_out_in_order() -> None:
    assert [page.ix for page in pages().pages] == [0, 1, 2, 3, 4]
    assert [sequence.id for sequence in pages().logical_seqs] == ["a", "s"]
    assert [entry.path for entry in tree().entries] == ["a", "a/link", "a-b"]
    # And may go in again.
    assert pfimg.PageManifest(META, pages().pages, pages().logical_seqs) == pages()
    assert pfimg.FsTree(tree().entries) == tree()


def test_geometry() -> None:
    assert META.shape == (2, 16, 4, 8)
    assert META.page_bytes == 2 * 16 * 4 * 8 * 2
    assert [pfimg.CacheMeta(1, 1, 1, 1, dtype).page_bytes for dtype in ("bf16", "f16", "f32", "fp8e4m3")] == [2, 2, 4, 1]
    with pytest.raises(pfimg.FormatError) as unknown:
        pfimg.CacheMeta(1, 1, 1, 1, "int8")
    assert unknown.value.field == "dtype"
    with pytest.raises(pfimg.LimitExceeded):
        _ = pfimg.CacheMeta(2**40, 2**40, 1, 1, "f32").page_bytes
    with pytest.raises(OverflowError):
        pfimg.CacheMeta(-1, 1, 1, 1, "f32")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("f", "644", 1, "file", A), "mode"),
        (("f", "0888", 1, "file", A), "mode"),
        (("f", "0644", 1, "pipe", A), "kind"),
        (("f", "0644", 1, "file"), "blob"),
        (("f", "0644", 1, "file", A, "target"), "blob"),
        (("d", "0755", 0, "dir", A), "blob"),
        (("l", "0777", 1, "symlink", A), "link_target"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_field(arguments: Any, field: str) -> None:
    with pytest.raises(pfimg.FormatError, match=f'^tree entry "{arguments[0]}"') as caught:
        pfimg.FsTreeEntry(*arguments)
    assert caught.value.field == field


def test_a_bad_digest_is_refused_where_it_is_given() -> None:
    for bad in ("", "sha256:", A.upper(), A + "0", "md5:" + "0" * 32):
        with pytest.raises(pfimg.FormatError, match=r"^digest "):
            pfimg.Page(0, A, bad)
    with pytest.raises(TypeError):
        pfimg.Page(0, A, 5)  # type: ignore[arg-type]


def test_documents_without_hash_are_not_hashable() -> None:
    for document in (pages(), tree()):
        with pytest.raises(TypeError, match="unhashable"):
            hash(document)


def test_walks_take_any_store(tmp_path: Any) -> None:
    memory = pfimg.MemoryStore()
    layers = pfimg.WorldLayer(memory.put(tree().to_json()), memory.put(b"env"), memory.put(b"procs"))
    made = manifest(
        world=layers, cache=pfimg.CacheLayer(memory.put(pages(1).to_json())), model=pfimg.ModelLayer(A, memory.put(b"{}"))
    )
    walked = pfimg.transitive_blob_digests(made, memory)
    assert walked[:4] == [A, made.model.diff, made.cache.manifest, layers.fs]
    assert set(walked) == {*pfimg.manifest_blob_digests(made), A, B}

    class Mapped(dict[str, bytes]):
        """The least that is a blob store."""

        def put(self, data: bytes) -> str:
            self[pfimg.digest_of(data)] = data
            return pfimg.digest_of(data)

        def get(self, digest: str) -> bytes:  # type: ignore[override]
            return self[digest]

        def has(self, digest: str) -> bool:
            return digest in self

        def physical_bytes(self) -> int:
            return sum(map(len, self.values()))

    mapped = Mapped((digest, memory.get(digest)) for digest in walked if memory.has(digest))
    assert pfimg.transitive_blob_digests(made, mapped) == walked
    assert pfimg.transitive_blob_digests(made, pfimg.PfStore.with_blobstore(tmp_path, mapped)) == walked
    with pytest.raises(pfimg.BlobNotFound) as absent:
        pfimg.transitive_blob_digests(manifest(), mapped)
    assert absent.value.digest == A


def test_frames_outside_of_a_store() -> None:
    text, noise = b"words and words " * 1000, bytes(range(256)) * 64
    for codec in ("auto", "zstd", "store"):
        for blob in (b"", text, noise):
            frame = _core.encode_frame(blob, codec=codec)
            assert _core.decode_frame(frame, expect=pfimg.digest_of(blob)) == blob
    with pytest.raises(pfimg.IntegrityError) as caught:
        _core.decode_frame(_core.encode_frame(text), expect=A)
    assert caught.value.digest == A
    with pytest.raises(pfimg.FormatError, match=r"^frame: "):
        _core.decode_frame(b"no frame")
    with pytest.raises(pfimg.FormatError, match=r"^codec: "):
        _core.encode_frame(text, codec="gzip")
