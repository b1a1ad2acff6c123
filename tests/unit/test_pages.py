"""KV pages beside damage, other stores and other people's manifests; what is usual is in test_kv_pages.py. Oracle: hashlib."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfimg

META = pfimg.CacheMeta(page_size_tokens=2, n_layers=1, n_heads=2, head_dim=4, dtype="f32")
SIZE = META.page_bytes
K, V = (np.random.default_rng(seed).integers(0, 256, (5, SIZE), dtype=np.uint8) for seed in range(2))


def name_of(row: Any) -> str:
    return f"sha256:{hashlib.sha256(row.tobytes()).hexdigest()}"


def file_of(store: pfimg.PfStore, digest: str) -> Path:
    path = store.blob_path(digest)
    assert path is not None
    return path


def spoil(store: pfimg.PfStore, digest: str) -> None:
    frame = bytearray(file_of(store, digest).read_bytes())
    frame[-1] ^= 1
    file_of(store, digest).write_bytes(frame)


@pytest.fixture
def pages(store: pfimg.PfStore) -> pfimg.PageManifest:
    return store.put_pages(META, K, V, logical_seqs=[pfimg.LogicalSeq("s", [4, 0, 4, 1], 1)])


def test_a_page_is_two_blobs_of_its_raw_bytes(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    assert [(page.ix, page.k, page.v) for page in pages.pages] == [(ix, name_of(K[ix]), name_of(V[ix])) for ix in range(5)]
    assert pages.meta == META
    assert store.stats().blobs == 10, "the manifest itself is stored by who wants it"
    assert store.get(pages.pages[3].v) == V[3].tobytes()


def test_equal_pages_are_kept_once(store: pfimg.PfStore) -> None:
    same = np.zeros((4, SIZE), np.uint8)
    pages = store.put_pages(META, same, same)
    assert {digest for page in pages.pages for digest in (page.k, page.v)} == {name_of(same[0])}
    assert store.stats().blobs == 1
    k, v = store.get_pages(pages)
    assert k.tobytes() == v.tobytes() == bytes(4 * SIZE)


def test_new_memory_is_plain_rows_of_bytes(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    for chosen, count in ((None, 5), ([], 0), ([2], 1)):
        for view in store.get_pages(pages, ixs=chosen):
            assert isinstance(view, memoryview)
            assert (view.shape, view.itemsize, view.nbytes) == ((count, SIZE), 1, count * SIZE)
            assert view.c_contiguous
            assert not view.readonly
    k, v = store.get_pages(pages, sequence="s")
    assert (k.tobytes(), v.tobytes()) == (K[[4, 0, 4, 1]].tobytes(), V[[4, 0, 4, 1]].tobytes())


def test_pages_go_to_arrays_and_lists_of_any_item_format(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    out_k = np.zeros((4, *META.shape), np.float32)
    out_v: list[Any] = [
        bytearray(SIZE),
        memoryview(bytearray(SIZE)),
        np.zeros(SIZE // 2, np.uint16),
        np.zeros((2, SIZE // 2), np.uint8),
    ]
    assert store.get_pages(pages, sequence="s", out_k=out_k, out_v=out_v) is None
    assert out_k.tobytes() == K[[4, 0, 4, 1]].tobytes()
    assert b"".join(memoryview(row).tobytes() for row in out_v) == V[[4, 0, 4, 1]].tobytes()


def test_one_corrupt_side_is_a_page_that_is_not_there(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    spoil(store, pages.pages[1].v)
    spoil(store, pages.pages[3].k)
    k, v, mask = store.get_pages(pages, errors="mask")
    assert mask == [True, False, True, False, True]
    assert [bytes(k[ix, at] for at in range(SIZE)) for ix in (0, 2, 4)] == [K[ix].tobytes() for ix in (0, 2, 4)]
    assert v.tobytes()[4 * SIZE :] == V[4].tobytes()
    assert store.stats().counters["corrupt"] == 2
    assert len(list((store.root / "quarantine").iterdir())) == 2
    # Now they are absent, which is a miss as well, wherever a sequence names the page.
    out = np.zeros((2, 4, SIZE), np.uint8)
    assert store.get_pages(pages, sequence="s", out_k=out[0], out_v=out[1], errors="mask") == [True, True, True, False]
    assert store.put_pages(META, K, V, logical_seqs=pages.logical_seqs) == pages
    assert store.get_pages(pages, errors="mask")[2] == [True] * 5


def test_a_corrupt_page_is_raised_with_its_place_in_the_selection(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    for side in ("k", "v"):
        digest = getattr(pages.pages[1], side)
        spoil(store, digest)
        with pytest.raises(pfimg.IntegrityError) as caught:
            store.get_pages(pages, ixs=[4, 0, 1])
        assert (caught.value.digest, caught.value.index) == (digest, 2)
        store.put_pages(META, K, V)


def test_a_cache_grows_without_its_old_pages(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    # What is not touched need not even be here.
    for page in pages.pages:
        file_of(store, page.k).unlink()
        file_of(store, page.v).unlink()
    grown = store.put_pages(META, K[::-1][:2].copy(), V[::-1][:2].copy(), first_ix=4, base=pages)
    assert [(page.ix, page.k) for page in grown.pages] == [(ix, name_of(K[at])) for ix, at in enumerate([0, 1, 2, 3, 4, 3])]
    assert grown.logical_seqs == pages.logical_seqs
    assert store.has_many([page.k for page in grown.pages]) == [False, False, False, True, True, True]
    assert len(pages) == 5, "the base stays what it was"


def test_sequences_of_a_base_may_name_old_and_new_pages(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    nothing = np.zeros((0, SIZE), np.uint8)
    renamed = store.put_pages(
        META, nothing, nothing, base=pages, logical_seqs=[pfimg.LogicalSeq("s", [2]), pfimg.LogicalSeq("t", [0])]
    )
    assert renamed.pages[:] == pages.pages[:]
    assert [(sequence.id, sequence.page_ixs) for sequence in renamed.logical_seqs] == [("s", (2,)), ("t", (0,))]
    with pytest.raises(pfimg.FormatError, match="9"):
        store.put_pages(META, K[:1], V[:1], first_ix=5, base=pages, logical_seqs=[pfimg.LogicalSeq("u", [5, 9])])


def test_numbers_end_where_the_format_ends(store: pfimg.PfStore) -> None:
    last = store.put_pages(META, K[:1], V[:1], first_ix=2**32 - 1)
    assert store.get_pages(last, ixs=[2**32 - 1])[0].tobytes() == K[0].tobytes()
    before = store.stats().blobs
    for first in (2**32 - 1, 2**32, 2**64 - 1):
        with pytest.raises(pfimg.FormatError):
            store.put_pages(META, K[1:3], V[1:3], first_ix=first)
    with pytest.raises(OverflowError):
        store.put_pages(META, K, V, first_ix=-1)
    assert store.stats().blobs == before


@pytest.mark.parametrize("side", ["k", "v"])
def test_each_side_is_measured(store: pfimg.PfStore, side: str) -> None:
    sides: dict[str, Any] = {"k": [*K], "v": [*V]}
    sides[side][3] = sides[side][3][:-1]
    with pytest.raises(
        pfimg.FormatError, match=rf"^page 13: {SIZE - 1} bytes where the geometry says {SIZE} \(field {side}\)$"
    ) as caught:
        store.put_pages(META, **sides, first_ix=10)
    assert (caught.value.field, caught.value.index) == (side, 3)
    assert store.stats().blobs == 0


def test_a_base_of_another_layout_is_refused(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    foreign = pfimg.PageManifest.from_json(pages.to_json().replace(b"paged-batchinvariant-v1", b"paged-v2"))
    before = store.stats().counters["written"]
    with pytest.raises(pfimg.FormatError, match='layout "paged-v2"') as caught:
        store.put_pages(META, K[:1] ^ 1, V[:1] ^ 1, first_ix=5, base=foreign)
    assert caught.value.field == "layout"
    assert store.stats().counters["written"] == before


def test_a_geometry_too_large_for_any_memory_is_refused(store: pfimg.PfStore) -> None:
    huge = pfimg.CacheMeta(page_size_tokens=2**40, n_layers=2**20, n_heads=2**3, head_dim=1, dtype="fp8e4m3")
    with pytest.raises(pfimg.LimitExceeded, match="BLOB_IN_MEMORY_BYTES"):
        store.get_pages(pfimg.PageManifest(huge, [pfimg.Page(0, name_of(K[0]), name_of(V[0]))]))


def test_a_way_of_errors_and_kinds_of_pages_are_checked(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    with pytest.raises(pfimg.FormatError, match=r"^errors: .* is neither raise nor mask"):
        store.get_pages(pages, errors="skip")  # type: ignore[call-overload]
    for wrong in (5, None, pages.to_json(), META):
        with pytest.raises(TypeError):
            store.get_pages(wrong)  # type: ignore[call-overload]


def test_an_image_is_read_by_its_marker_when_its_manifest_blob_is_lost(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    image = pfimg.snapshot(store, agent="tester", cache=pages)
    file_of(store, image).unlink()
    assert store.get_pages(image)[0].tobytes() == K.tobytes()
    store.remove_image(image)
    with pytest.raises(pfimg.BlobNotFound) as caught:
        store.get_pages(image)
    assert caught.value.digest == image


def test_the_document_of_pages_is_verified_too(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    document = store.put(pages.to_json())
    spoil(store, document)
    with pytest.raises(pfimg.IntegrityError) as caught:
        store.get_pages(document, errors="mask")
    assert caught.value.digest == document


def test_pages_in_a_blake3_store(tmp_path: Path, kv_pages: Any) -> None:
    store = pfimg.PfStore.open(tmp_path, digest="blake3")
    pages = store.put_pages(kv_pages.meta, kv_pages.k[:3], kv_pages.v[:3])
    assert all(digest.startswith("blake3:") for page in pages.pages for digest in (page.k, page.v))
    k, v = store.get_pages(store.put(pages.to_json()))
    assert (k.tobytes(), v.tobytes()) == (kv_pages.k[:3].tobytes(), kv_pages.v[:3].tobytes())
    with pytest.raises(pfimg.FormatError, match="the store's digests are blake3"):
        store.get_pages(pfimg.PageManifest(META, [pfimg.Page(0, name_of(K[0]), name_of(V[0]))]))
