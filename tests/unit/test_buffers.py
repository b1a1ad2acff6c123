"""What counts as a buffer, how batches are cut, and what is refused by name. Oracle: hashlib over the same bytes."""

import array
import hashlib
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pfimg
from pfimg import _core


def digest(data: Any) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


DTYPES = [np.uint8, np.int16, np.uint16, np.float16, np.float32, np.complex128, np.bool_, "M8[s]", "U3", "V5", "i4,f8"]
DTYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_arrays_of_every_item_format_are_read_as_their_bytes(dtype: Any) -> None:
    flat = np.arange(6 * np.dtype(dtype).itemsize, dtype=np.uint8)
    blob = flat % 2 if np.dtype(dtype) == np.bool_ else flat
    for shape in ((6,), (2, 3), (1, 2, 3)):
        assert pfimg.digest_of(blob.view(dtype).reshape(shape)) == digest(blob.tobytes())


def test_objects_with_the_buffer_protocol_are_read_in_place(tmp_path: Path) -> None:
    blob = bytes(range(256)) * 16
    path = tmp_path / "blob"
    path.write_bytes(blob)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for data in (
            blob,
            bytearray(blob),
            memoryview(blob),
            memoryview(blob).cast("Q", (8, 64)),
            array.array("d", blob),
            mapped,
        ):
            assert pfimg.digest_of(data) == digest(blob)


@pytest.mark.parametrize("empty", [b"", bytearray(), np.zeros(0), np.zeros((0, 5)), np.zeros((3, 0), np.uint16)])
def test_empty_buffers_are_the_empty_blob(store: pfimg.PfStore, empty: Any) -> None:
    assert pfimg.digest_of(empty) == store.put(empty) == digest(b"")


def test_a_slice_of_rows_is_contiguous_and_a_column_is_not() -> None:
    table = np.arange(40, dtype=np.uint16).reshape(8, 5)
    assert pfimg.digest_of(table[2:4]) == digest(table[2:4].tobytes())
    for refused in (table[:, 1], table.T, table[::2], np.asfortranarray(table), memoryview(bytes(10))[::2]):
        with pytest.raises(BufferError, match=r"^data is not C-contiguous: copy it first"):
            pfimg.digest_of(refused)


def test_batches_name_the_argument_and_the_item_they_refuse(store: pfimg.PfStore) -> None:
    table = np.arange(40, dtype=np.uint8).reshape(8, 5)
    with pytest.raises(BufferError, match=r"^buffers is not C-contiguous"):
        store.put_many(table.T)
    with pytest.raises(BufferError, match=r"^buffers\[1\] is not C-contiguous"):
        store.put_many([table[0], table[:, 0]])
    with pytest.raises(TypeError, match=r"^buffers\[2\] is not a buffer \(bytes, array or CPU tensor\) but int"):
        store.put_many([b"", b"", 7])
    assert store.stats().blobs == 0


@pytest.mark.parametrize("refused", [5, "text", None, object(), [b"in a list"]])
def test_what_is_no_buffer_is_refused(refused: object) -> None:
    with pytest.raises(TypeError, match=r"^data is not a buffer .* but " + type(refused).__name__):
        pfimg.digest_of(refused)


def test_memory_of_references_is_never_read_or_written(store: pfimg.PfStore) -> None:
    kept = object()
    for refused in (np.array([kept]), np.zeros(1, [("number", "i4"), ("thing", "O")])):
        with pytest.raises(TypeError, match=r"^data holds references to Python objects"):
            pfimg.digest_of(refused)
        with pytest.raises(TypeError, match=r"references"):
            store.get_many([store.put(bytes(refused.nbytes))], out=[refused])
    # A field may be called O.
    named = np.zeros(3, [("O", "i4"), ("Other", "i4")])
    assert pfimg.digest_of(named) == digest(named.tobytes())
    with pytest.raises(BufferError, match=r"^data: "):
        pfimg.digest_of(np.array(["text of any length"], np.dtypes.StringDType()))


@pytest.mark.parametrize("single", [b"", b"blob", bytearray(4), np.zeros(4), memoryview(b"blob")])
def test_a_single_blob_is_no_batch(store: pfimg.PfStore, single: Any) -> None:
    with pytest.raises(TypeError, match=r"^buffers is a single blob: use put"):
        store.put_many(single)


@pytest.mark.parametrize("no_batch", [5, None, object()])
def test_what_is_no_sequence_is_no_batch(store: pfimg.PfStore, no_batch: Any) -> None:
    with pytest.raises(TypeError, match=r"^buffers is not a buffer"):
        store.put_many(no_batch)


def test_axis_0_is_blobs(store: pfimg.PfStore) -> None:
    pages = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    want = [digest(page.tobytes()) for page in pages]
    assert store.put_many(pages) == want
    assert store.put_many(list(pages)) == want
    assert store.put_many(tuple(page.data for page in pages)) == want
    assert store.put_many(pages.view(ml_dtypes.bfloat16)) == want
    assert store.get_many(want) == [page.tobytes() for page in pages]
    out = np.empty_like(pages)
    assert store.get_many(want, out=out) is None
    np.testing.assert_array_equal(out, pages)
    assert store.put_many(pages[:0]) == []
    assert store.put_many([]) == []


def test_every_kind_of_writable_buffer_is_filled(store: pfimg.PfStore) -> None:
    blob = bytes(range(200)) * 40
    name = store.put(blob)
    with mmap.mmap(-1, len(blob)) as mapped:
        outs: list[Any] = [bytearray(len(blob)), memoryview(bytearray(len(blob))), array.array("d", bytes(len(blob))), mapped]
        outs += [np.zeros(len(blob) // 2, ml_dtypes.bfloat16), np.zeros((40, 50, 4), np.uint8)]
        assert store.get_many([name] * len(outs), out=outs, errors="mask") == [True] * len(outs)
        for out in outs:
            assert (out.tobytes() if isinstance(out, np.ndarray | memoryview | array.array) else bytes(out)) == blob


def test_outs_that_cannot_be_written_are_refused_by_name(store: pfimg.PfStore) -> None:
    names = store.put_many([b"aaaa", b"bbbb"])
    frozen = np.zeros((2, 4), np.uint8)
    frozen.flags.writeable = False
    for out, name in ((frozen, r"out"), ([bytearray(4), b"bytes are constant"], r"out\[1\]")):
        with pytest.raises(BufferError, match=rf"^{name} is read-only$"):
            store.get_many(names, out=out)
    with pytest.raises(BufferError, match=r"^out is not C-contiguous"):
        store.get_many(names, out=np.zeros((4, 2), np.uint8).T)
    with pytest.raises(TypeError, match=r"^out is a single blob: give a list of one"):
        store.get_many(names[:1], out=bytearray(4))


def test_outs_of_the_wrong_size_are_refused_with_their_index(store: pfimg.PfStore) -> None:
    names = store.put_many([b"aaaa", b"bbbb"])
    with pytest.raises(pfimg.FormatError, match=r"4 bytes") as caught:
        store.get_many(names, out=[bytearray(4), bytearray(5)])
    assert caught.value.index == 1
    with pytest.raises(pfimg.FormatError, match=r"^out: it has 3 rows for 2 digests"):
        store.get_many(names, out=np.zeros((3, 4), np.uint8))


def test_outs_that_share_memory_are_refused(store: pfimg.PfStore) -> None:
    names = store.put_many([b"aaaa", b"bbbb"])
    whole = bytearray(8)
    view = memoryview(whole)
    with pytest.raises(ValueError, match=r"^out\[0\] and out\[1\] share memory"):
        store.get_many(names, out=[view[0:4], view[3:7]])
    assert store.get_many(names, out=[view[4:8], view[0:4]]) is None
    assert whole == b"bbbbaaaa"
    meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=4, dtype="fp8e4m3")
    pages = store.put_pages(meta, [b"aaaa"], [b"bbbb"])
    side = np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match=r"^out_k and out_v share memory"):
        store.get_pages(pages, out_k=side, out_v=side)


def test_memory_is_pinned_during_a_call_and_free_after_it(store: pfimg.PfStore) -> None:
    data = bytearray(b"blob")
    name = store.put_many([data])[0]
    data.extend(b"grows: nothing holds an export any more")
    out = bytearray(4)
    with pytest.raises(TypeError):
        store.get_many([name, name], out=[out, 5])
    out.extend(b"neither after an error")


class ReadBack:
    """A blob store in Python, which sees what the core gives and takes."""

    def __init__(self, during_put: Any) -> None:
        self.during_put = during_put

    def put(self, data: bytes) -> str:
        self.during_put()
        return _core.digest_of(data)

    def get(self, digest: str) -> bytes:
        raise KeyError(digest)

    def has(self, _digest: str) -> bool:
        return False

    def physical_bytes(self) -> int:
        return 0


def test_a_buffer_cannot_be_resized_while_it_is_read(tmp_path: Path) -> None:
    data = bytearray(b"blob")

    def resize() -> None:
        with pytest.raises(BufferError):
            data.extend(b"more")
        seen.append(bytes(data))

    seen: list[bytes] = []
    pfimg.PfStore.with_blobstore(tmp_path, ReadBack(resize)).put(data)
    assert seen == [b"blob"]
