"""KV pages: arrays in, a page manifest out, and back. Oracle: the arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pfimg

META = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="f16")
Pages = npt.NDArray[Any]


def side(count: int, seed: int) -> Pages:
    return np.random.default_rng(seed).standard_normal((count, *META.shape)).astype(np.float16)


K, V = side(6, 0), side(6, 1)


def arrays(views: tuple[memoryview, memoryview]) -> tuple[Pages, Pages]:
    for view in views:
        assert view.contiguous
        assert view.shape == (len(view), META.page_bytes)
    k, v = (np.asarray(view).view(np.float16).reshape(-1, *META.shape) for view in views)
    return k, v


@pytest.fixture
def pages(store: pfimg.PfStore) -> pfimg.PageManifest:
    sequences = [pfimg.LogicalSeq("long", [0, 1, 2, 5, 4, 3], 3), pfimg.LogicalSeq("short", [5, 5]), pfimg.LogicalSeq("none", [])]
    return store.put_pages(META, K, V, logical_seqs=sequences)


def test_real_pages_come_back(store: pfimg.PfStore, kv_pages: Any) -> None:
    pages = store.put_pages(kv_pages.meta, kv_pages.k, kv_pages.v)
    assert [page.k for page in pages.pages] == [pfimg.digest_of(page.tobytes()) for page in kv_pages.k]
    assert [page.v for page in pages.pages] == [pfimg.digest_of(page.tobytes()) for page in kv_pages.v]
    k, v = store.get_pages(pages)
    np.testing.assert_array_equal(np.asarray(k).reshape(-1).view(kv_pages.k.dtype).reshape(kv_pages.k.shape), kv_pages.k)
    np.testing.assert_array_equal(np.asarray(v).reshape(-1).view(kv_pages.v.dtype).reshape(kv_pages.v.shape), kv_pages.v)


@pytest.mark.parametrize("form", [list, tuple, lambda a: [page.tobytes() for page in a], lambda a: a.view(np.uint8), lambda a: a])
def test_pages_are_put_from_arrays_and_sequences(store: pfimg.PfStore, pages: pfimg.PageManifest, form: Any) -> None:
    assert store.put_pages(META, form(K), form(V), logical_seqs=pages.logical_seqs) == pages


def test_new_memory_is_writable_and_outlives_its_store(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    views = store.get_pages(pages)
    del store
    k, v = arrays(views)
    np.testing.assert_array_equal(k, K)
    np.testing.assert_array_equal(v, V)
    k[0] = 0
    assert not views[0].readonly


def test_pages_are_chosen_by_number_and_by_sequence(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    choices: list[tuple[dict[str, Any], list[int]]] = [
        ({"ixs": [3, 0, 3]}, [3, 0, 3]),
        ({"ixs": []}, []),
        ({"sequence": "long"}, [0, 1, 2, 5, 4, 3]),
        ({"sequence": "short"}, [5, 5]),
        ({"sequence": "none"}, []),
    ]
    for choice, want in choices:
        k, v = arrays(store.get_pages(pages, **choice))
        np.testing.assert_array_equal(k, K[want])
        np.testing.assert_array_equal(v, V[want])
        k, v = np.zeros_like(K[want]), np.zeros_like(V[want])
        assert store.get_pages(pages, out_k=k, out_v=list(v), **choice) is None
        np.testing.assert_array_equal(k, K[want])
        np.testing.assert_array_equal(v, V[want])


def test_a_manifest_is_found_by_its_digest_and_by_its_image(
    store: pfimg.PfStore, pages: pfimg.PageManifest, tmp_path: Path
) -> None:
    digest = store.put(pages.to_json())
    image = pfimg.snapshot(store, agent="agent", cache=pages)
    for name in (digest, image):
        k, _ = arrays(store.get_pages(name, ixs=[2]))
        np.testing.assert_array_equal(k, K[[2]])
    with pytest.raises(pfimg.BlobNotFound):
        store.get_pages("sha256:" + "0" * 64)
    with pytest.raises(pfimg.FormatError, match=r"^page manifest: "):
        store.get_pages(store.put(b"something else"))
    # An image of which only the marker and the chosen pages are here.
    other = pfimg.PfStore.open(tmp_path / "other")
    manifest = store.get_manifest(image)
    wanted = [digest for digest in store.reachable(manifest, layers=["cache"], ixs=[2]) if digest != image]
    other.land_frames([(name, store.read_frame(name)) for name in wanted])
    other.put_partial(manifest)
    k, _ = arrays(other.get_pages(image, ixs=[2]))
    np.testing.assert_array_equal(k, K[[2]])
    with pytest.raises(pfimg.BlobNotFound):
        other.get_pages(image, ixs=[2, 3])
    assert other.get_pages(image, errors="mask")[2] == [False, False, True, False, False, False]


def test_an_image_without_a_cache_has_no_pages(store: pfimg.PfStore) -> None:
    k, v = store.get_pages(pfimg.snapshot(store, agent="agent"))
    assert k.shape == v.shape == (0, 0)
    assert np.asarray(k).shape == (0, 0)


def test_a_cache_grows_and_changes(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    written = store.stats().counters["written"]
    more_k, more_v = side(2, 2), side(2, 3)
    longer = [pfimg.LogicalSeq("short", [5, 6, 7]), pfimg.LogicalSeq("new", [7])]
    grown = store.put_pages(META, more_k, more_v, first_ix=6, base=pages, logical_seqs=longer)
    assert store.stats().counters["written"] == written + 4
    assert [page.ix for page in grown.pages] == list(range(8))
    assert [(seq.id, seq.page_ixs) for seq in grown.logical_seqs] == [
        ("long", (0, 1, 2, 5, 4, 3)),
        ("new", (7,)),
        ("none", ()),
        ("short", (5, 6, 7)),
    ]
    k, v = arrays(store.get_pages(grown))
    np.testing.assert_array_equal(k, np.concatenate([K, more_k]))
    np.testing.assert_array_equal(v, np.concatenate([V, more_v]))
    replaced = store.put_pages(META, more_k[:1], V[2:3], first_ix=2, base=pages)
    assert [page.ix for page in replaced.pages] == list(range(6))
    changed = [page.ix for page, old in zip(replaced.pages, pages.pages, strict=True) if page != old]
    assert changed == [2]
    assert replaced.pages[2].v == pages.pages[2].v
    assert replaced.logical_seqs == pages.logical_seqs


def test_a_base_of_another_geometry_is_refused(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    other = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")
    with pytest.raises(pfimg.FormatError, match="f16 where bf16 is expected") as caught:
        store.put_pages(other, K, V, base=pages)
    assert caught.value.field == "dtype"


@pytest.mark.parametrize("field", ["page_size_tokens", "n_layers", "n_heads", "head_dim", "dtype"])
def test_expect_refuses_another_geometry_by_field(store: pfimg.PfStore, pages: pfimg.PageManifest, field: str) -> None:
    fields: dict[str, Any] = {"page_size_tokens": 4, "n_layers": 2, "n_heads": 2, "head_dim": 8, "dtype": "f16"}
    assert store.get_pages(pages, ixs=[0], expect=pfimg.CacheMeta(**fields))
    changed = pfimg.CacheMeta(**(fields | {field: "bf16" if field == "dtype" else 3}))
    with pytest.raises(pfimg.FormatError) as caught:
        store.get_pages(pages, expect=changed)
    assert caught.value.field == field


def test_a_page_of_another_length_is_named_by_page_and_side(store: pfimg.PfStore) -> None:
    short = [*K[:2], K[2, 0], *K[3:]]
    with pytest.raises(pfimg.FormatError, match=r"^page 12: 128 bytes where the geometry says 256") as put:
        store.put_pages(META, K, short, first_ix=10)
    assert (put.value.field, put.value.index) == ("v", 2)
    assert store.stats().blobs == 0
    # Somebody else's manifest may name a blob that is no page.
    digests = store.put_many([b"k" * 256, b"v" * 255])
    pages = pfimg.PageManifest(META, [pfimg.Page(7, *digests)])
    with pytest.raises(pfimg.FormatError, match=r"^page 7: .*255 bytes") as got:
        store.get_pages(pages)
    assert (got.value.field, got.value.index) == ("v", 0)


@pytest.mark.parametrize(
    "sequences",
    [[pfimg.LogicalSeq("s", [6])], [pfimg.LogicalSeq("s", []), pfimg.LogicalSeq("s", [])], [pfimg.LogicalSeq("s", [0], 4)]],
    ids=["page that is not there", "twice", "overfull"],
)
def test_sequences_that_cannot_be_are_refused_before_anything_is_stored(store: pfimg.PfStore, sequences: Any) -> None:
    with pytest.raises(pfimg.FormatError):
        store.put_pages(META, K, V, logical_seqs=sequences)
    assert store.stats().blobs == 0


def test_arguments_that_do_not_fit_together_are_refused(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    refused: list[tuple[Any, type[Exception], str]] = [
        (lambda: store.put_pages(META, K, V[:5]), pfimg.FormatError, r"^pages: k has 6 and v has 5"),
        (lambda: store.put_pages(META, K[0].reshape(-1), V), TypeError, r"^k is a single blob"),
        (lambda: store.get_pages(pages, ixs=[0], sequence="long"), TypeError, "not both"),
        (lambda: store.get_pages(pages, sequence="absent"), pfimg.FormatError, r'no sequence "absent"'),
        (lambda: store.get_pages(pages, ixs=[0, 6]), pfimg.FormatError, "no page 6"),
        (lambda: store.get_pages(pages, out_k=np.empty_like(K), out_v=None), TypeError, "both out_k and out_v"),
        (
            lambda: store.get_pages(pages, out_k=K[:5].copy(), out_v=V.copy()),
            pfimg.FormatError,
            r"^out_k: it has 5 rows for 6 pages",
        ),
        (lambda: store.get_pages(pages, out_k=K.copy(), out_v=V[:, :1].copy()), pfimg.FormatError, r"^out_v\[0\]: 128 bytes"),
    ]
    for call, error, match in refused:
        with pytest.raises(error, match=match):
            call()


def test_pages_of_an_unknown_layout_are_not_read(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    foreign = pfimg.PageManifest.from_json(pages.to_json().replace(b"paged-batchinvariant-v1", b"some-other-layout"))
    with pytest.raises(pfimg.FormatError) as caught:
        store.get_pages(foreign)
    assert caught.value.field == "layout"


def test_a_page_is_there_only_if_both_sides_are(store: pfimg.PfStore, pages: pfimg.PageManifest) -> None:
    for name in (pages.pages[1].k, pages.pages[4].v):
        path = store.blob_path(name)
        assert path
        path.unlink()
    want = [True, False, True, True, False, True]
    k, v, mask = store.get_pages(pages, errors="mask")
    assert mask == want
    np.testing.assert_array_equal(arrays((k, v))[0][want], K[want])
    out_k, out_v = np.zeros_like(K), np.zeros_like(V)
    assert store.get_pages(pages, out_k=out_k, out_v=out_v, errors="mask") == want
    np.testing.assert_array_equal(out_v[want], V[want])
    with pytest.raises(pfimg.BlobNotFound) as caught:
        store.get_pages(pages, sequence="long")
    assert caught.value.index == 1


def test_pages_in_any_blob_store(tmp_path: Path) -> None:
    store = pfimg.PfStore.with_blobstore(tmp_path, pfimg.MemoryStore())
    pages = store.put_pages(META, K, V)
    np.testing.assert_array_equal(arrays(store.get_pages(pages))[1], V)
