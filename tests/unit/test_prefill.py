"""Pages out of caches into an image, and into other caches: bit by bit, to the same identity only, whatever the image says."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.test_cache import hold_thread

import pfimg

PAGE = 4096
LLAMA = pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd")
RANKS = [replace(LLAMA, tp_rank=rank, tp_size=2) for rank in range(2)]

Rows = npt.NDArray[np.uint8]
Key = bytes | str


def pages(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE), dtype=np.uint8)


def open_cache(path: Path | None, identity: pfimg.CacheIdentity = LLAMA, **options: Any) -> pfimg.PageCache:
    cache = pfimg.PageCache(path, **{"page_bytes": PAGE, "arena_bytes": 64 * PAGE} | options)
    cache.bind("chat", identity)
    return cache


def fill(path: Path, keys: list[Key], content: Rows, identity: pfimg.CacheIdentity = LLAMA) -> Path:
    """A cache with these pages that is not in use."""
    with open_cache(path, identity) as cache:
        cache.put_many("chat", keys, content)
    return path


def read(cache: pfimg.PageCache, keys: list[Key], expected: Rows) -> list[bool]:
    out = np.zeros_like(expected)
    mask = cache.get_many("chat", keys, out=out)
    assert (out[mask] == expected[mask]).all()
    return mask


@pytest.fixture
def store(tmp_path: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path / "store")


@pytest.fixture
def ref(tmp_path: Path) -> str:
    return f"file://{tmp_path}/registry#prompt"


KEYS: list[Key] = ["text", b"bytes", "", b"", "naïve / \0 ..", bytes(range(256)), "long" * 300]


# Out, and in again.


@pytest.mark.parametrize("stored", [True, False])
def test_pages_come_back_bit_by_bit(tmp_path: Path, store: pfimg.PfStore, ref: str, *, stored: bool) -> None:
    content = pages(len(KEYS))
    report = pfimg.export_pages(fill(tmp_path / "cache", KEYS, content), store)
    assert (report.parts, report.keys, report.bytes, report.missing) == (1, 7, 7 * PAGE, 0)
    assert store.verify().ok
    pfimg.push(store, report.image, ref)
    with open_cache(tmp_path / "other" if stored else None) as cache:
        warmed = pfimg.warm(cache, ref)
        assert (warmed.image, warmed.namespaces, warmed.keys, warmed.fetched) == (report.image, ("chat",), 7, 7)
        assert (warmed.bytes, warmed.missing, warmed.no_room) == (7 * PAGE, 0, 0)
        assert read(cache, KEYS, content) == [True] * 7
        again = pfimg.warm(cache, ref)
        assert (again.keys, again.fetched) == (7, 0)
    if stored:
        with open_cache(tmp_path / "other") as cache:
            assert read(cache, KEYS, content) == [True] * 7


def test_it_is_an_ordinary_image(tmp_path: Path, store: pfimg.PfStore) -> None:
    image = pfimg.export_pages(fill(tmp_path / "cache", ["a", b"b"], pages(2)), store, agent="warm").image
    pfimg.checkout(store, image, tmp_path / "files")
    found = {path.relative_to(tmp_path / "files").as_posix(): path for path in (tmp_path / "files").rglob("*") if path.is_file()}
    assert found.keys() == {"pages.json", "0/t61", "0/b62"}
    assert found["0/b62"].read_bytes() == pages(2)[1].tobytes()
    told = json.loads(found["pages.json"].read_text())
    assert told["parts"][0]["keys"] == ["t61", "b62"]
    assert store.get_manifest(image).agent.kind == "warm"


def test_the_cache_may_be_in_use(tmp_path: Path, store: pfimg.PfStore) -> None:
    content = pages(40)
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", [f"k{n}" for n in range(20)], content[:20])
        cache.flush()
        stop = threading.Event()

        def put() -> None:
            while not stop.is_set():
                cache.put_many("chat", [f"k{n}" for n in range(20, 40)], content[20:])
                cache.delete("chat", [f"k{n}" for n in range(20, 40)])

        thread = threading.Thread(target=put)
        thread.start()
        try:
            images = [pfimg.export_pages(tmp_path / "cache", store) for _ in range(5)]
        finally:
            stop.set()
            thread.join()
        assert all(report.keys >= 20 for report in images)
        assert cache.leading_hits("chat", [f"k{n}" for n in range(20)]) == 20
    assert store.verify().ok


def test_keys_can_be_chosen(tmp_path: Path, store: pfimg.PfStore) -> None:
    cache = fill(tmp_path / "cache", ["a1", "b1", b"a3", "a2"], pages(4))

    def exported(**chosen: Any) -> list[str]:
        image = pfimg.export_pages(cache, store, **chosen).image
        entries = pfimg.FsTree.from_json(store.get(store.get_manifest(image).world.fs)).entries
        (document,) = (entry.blob for entry in entries if entry.path == "pages.json")
        assert document is not None
        keys: list[str] = json.loads(store.get(document))["parts"][0]["keys"]
        return keys

    assert exported(prefix="a") == ["t6131", "t6132"]
    assert exported(prefix=b"a") == ["b6133"]
    assert exported(keys=["a2", "none", "b1"]) == ["t6132", "t6231"]
    assert exported(namespaces=["chat"]) == ["t6131", "t6231", "b6133", "t6132"]
    nothing: dict[str, Any]
    for nothing in ({"prefix": "c"}, {"keys": []}, {"namespaces": ["chat", "none"]}):
        with pytest.raises(pfimg.StoreError, match=r"no such page|'none'") as refused:
            exported(**nothing)
        assert refused.value.code == "no_pages"


def test_what_the_cache_has_lost_is_left_out(tmp_path: Path, store: pfimg.PfStore) -> None:
    keys: list[Key] = [str(n) for n in range(6)]
    cache = fill(tmp_path / "cache", keys, pages(6))
    lost, damaged, *_ = sorted((cache / "store/blobs").rglob("*.zst"))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    report = pfimg.export_pages(cache, store)
    assert (report.keys, report.missing) == (4, 2)
    assert store.verify().ok


def test_where_there_is_no_cache(tmp_path: Path, store: pfimg.PfStore) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no page cache"):
            pfimg.export_pages(path, store)
    (fill(tmp_path / "cache", ["a"], pages(1)) / "index.sqlite").write_bytes(b"something else")
    with pytest.raises(pfimg.FormatError, match="no index"):
        pfimg.export_pages(tmp_path / "cache", store)


# Identities.


@pytest.fixture
def group(tmp_path: Path, store: pfimg.PfStore) -> str:
    """An image of both ranks, each with a page under the same key."""
    for rank, identity in enumerate(RANKS):
        fill(tmp_path / "tier" / f"tp{rank}", ["a"], pages(1, rank), identity)
    report = pfimg.export_pages(tmp_path / "tier", store)
    assert (report.parts, report.keys) == (2, 2)
    beside = pfimg.export_pages([tmp_path / "tier" / "tp0", tmp_path / "tier" / "tp1"], store)
    assert store.get_manifest(beside.image).world.fs == store.get_manifest(report.image).world.fs
    return report.image


def test_each_rank_gets_what_is_its_own(tmp_path: Path, store: pfimg.PfStore, group: str) -> None:
    for rank, identity in enumerate(RANKS):
        with open_cache(tmp_path / "new", identity) as cache:
            assert pfimg.warm(cache, group, store=store).keys == 1
            assert read(cache, ["a"], pages(1, rank)) == [True]
            cache.clear("chat")


def test_another_identity_is_refused_by_name(tmp_path: Path, store: pfimg.PfStore, group: str) -> None:
    others = [LLAMA, replace(RANKS[0], revision="v2"), replace(RANKS[1], geometry=(32, 2, 2, 32)), replace(RANKS[1], tp_rank=2)]
    for other in others:
        with open_cache(None, other) as cache:
            with pytest.raises(pfimg.StoreError, match="'chat'") as refused:
                pfimg.warm(cache, group, store=store)
            assert refused.value.code == "identity"
            assert cache.keys("chat") == {}
    with open_cache(None, others[1]) as cache, pytest.raises(pfimg.StoreError, match="revision 'main' is not 'v2'"):
        pfimg.warm(cache, group, store=store)
    with open_cache(None, RANKS[0]) as cache, pytest.raises(pfimg.StoreError, match="no namespace 'none'"):
        pfimg.warm(cache, group, store=store, namespace="none")
    with pytest.raises(pfimg.StoreError, match=r"tp_rank \d is not 7"):
        pfimg.warm(fill(tmp_path / "seven", ["z"], pages(1), replace(RANKS[1], tp_rank=7)), group, store=store)


def test_a_new_directory_gets_the_group_as_it_was(tmp_path: Path, store: pfimg.PfStore, group: str) -> None:
    report = pfimg.warm(tmp_path / "fleet", group, store=store)
    assert (report.namespaces, report.keys, report.fetched) == (("chat", "chat"), 2, 2)
    for rank, identity in enumerate(RANKS):
        with open_cache(tmp_path / "fleet" / f"tp{rank}", identity) as cache:
            assert read(cache, ["a"], pages(1, rank)) == [True]
    # The directory of one rank, given the image of all.
    fill(tmp_path / "alone", ["z"], pages(1, 9), RANKS[1])
    assert pfimg.warm(tmp_path / "alone", group, store=store).keys == 1
    with open_cache(tmp_path / "alone", RANKS[1]) as cache:
        assert read(cache, ["a"], pages(1, 1)) == [True]


def test_a_directory_that_is_in_use_is_refused(tmp_path: Path, store: pfimg.PfStore) -> None:
    image = pfimg.export_pages(fill(tmp_path / "cache", ["a"], pages(1)), store).image
    with open_cache(tmp_path / "other"), pytest.raises(pfimg.StoreError, match="already"):
        pfimg.warm(tmp_path / "other", image, store=store)


def test_two_directories_of_one_name_are_refused(tmp_path: Path, store: pfimg.PfStore) -> None:
    for parent in ("a", "b"):
        fill(tmp_path / parent / "tp0", ["a"], pages(1))
    with pytest.raises(pfimg.FormatError, match="'tp0'"):
        pfimg.export_pages([tmp_path / "a", tmp_path / "b"], store)


# What there is room for, and what is there.


def test_what_is_here_stays(tmp_path: Path, store: pfimg.PfStore) -> None:
    image = pfimg.export_pages(fill(tmp_path / "cache", ["a", "b"], pages(2)), store).image
    with open_cache(tmp_path / "other") as cache:
        cache.put_many("chat", ["a"], pages(1, 5))
        report = pfimg.warm(cache, image, store=store)
        assert (report.keys, report.fetched) == (2, 1)
        assert read(cache, ["a"], pages(1, 5)) == [True]
        assert read(cache, ["b"], pages(2)[1:]) == [True]


@pytest.mark.parametrize("limits", [{"store_bytes": 5 * PAGE}, {"max_bytes": 5 * PAGE}, {"arena_bytes": 5 * PAGE}])
def test_the_first_pages_get_the_room(tmp_path: Path, store: pfimg.PfStore, limits: dict[str, int]) -> None:
    keys: list[Key] = [f"{n}" for n in range(12)]
    image = pfimg.export_pages(fill(tmp_path / "cache", keys, pages(12)), store).image
    max_bytes = limits.get("max_bytes")
    options: dict[str, Any] = {word: value for word, value in limits.items() if word != "max_bytes"}
    with open_cache(None if "arena_bytes" in limits else tmp_path / "other", **options) as cache:
        cache.bind("chat", LLAMA, max_bytes=max_bytes)
        report = pfimg.warm(cache, image, store=store)
        assert (report.keys, report.no_room) == (5, 7)
        assert cache.leading_hits("chat", keys) == 5
        assert read(cache, keys[:5], pages(12)[:5]) == [True] * 5


def test_a_lost_page_is_brought_again(tmp_path: Path, store: pfimg.PfStore) -> None:
    cache = fill(tmp_path / "cache", ["a", "b"], pages(2))
    image = pfimg.export_pages(cache, store).image
    for blob in (cache / "store/blobs").rglob("*.zst"):
        blob.unlink()
    assert pfimg.warm(cache, image, store=store).fetched == 2
    with open_cache(cache) as opened:
        assert read(opened, ["a", "b"], pages(2)) == [True, True]


def test_pages_removed_meanwhile_are_brought_again(tmp_path: Path, store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that lie in the store without a key when they are looked for, and are removed before they get one."""
    image = pfimg.export_pages(fill(tmp_path / "cache", ["a"], pages(1)), store).image
    with open_cache(tmp_path / "other") as cache:
        cache.put_many("chat", ["z"], pages(1))
        cache.flush()
        gate = hold_thread(cache)
        cache.delete("chat", ["z"])
        put = cache._index.put

        def after_removal(*args: Any, **options: Any) -> list[str]:
            gate.set()
            done = threading.Event()
            cache._writer.run(done.set)
            assert done.wait(10)
            return put(*args, **options)

        monkeypatch.setattr(cache._index, "put", after_removal)
        assert pfimg.warm(cache, image, store=store).keys == 1
        assert read(cache, ["a"], pages(1)) == [True]
        cache.flush()
    with open_cache(tmp_path / "other") as cache:
        assert read(cache, ["a"], pages(1)) == [True]


# Images that lie.

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def altered(tmp_path: Path, store: pfimg.PfStore) -> Callable[..., str]:
    """Makes an image whose document, or tree, was changed."""
    image = pfimg.export_pages(fill(tmp_path / "honest", ["a", "b"], pages(2)), store).image
    entries = list(pfimg.FsTree.from_json(store.get(store.get_manifest(image).world.fs)).entries)
    (document,) = (entry.blob for entry in entries if entry.path == "pages.json")
    assert document is not None

    def make(change: Change | None = None, raw: bytes | None = None, files: Callable[[Any], Any] = lambda entry: entry) -> str:
        told = json.loads(store.get(document))
        if change is not None:
            change(told)
        blob = store.put(json.dumps(told).encode() if raw is None else raw)
        made = [pfimg.FsTreeEntry("pages.json", "0644", 1, "file", blob) if e.path == "pages.json" else files(e) for e in entries]
        return pfimg.snapshot(store, agent="liar", fs_tree=pfimg.FsTree([entry for entry in made if entry is not None]))

    return make


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(kind="engine.pages.v2"),
        lambda told: told.update(parts={}),
        lambda told: told.update(parts=[7]),
        lambda told: told["parts"][0].pop("keys"),
        lambda told: told["parts"][0].update(keys=["t61", "t61"]),
        lambda told: told["parts"][0].update(keys=["t6"]),
        lambda told: told["parts"][0].update(keys=["61"]),
        lambda told: told["parts"][0].update(keys=["t 61"]),
        lambda told: told["parts"][0].update(keys=["tff"]),
        lambda told: told["parts"][0].update(keys=[["t61"]]),
        lambda told: told["parts"][0].update(keys=["t7a"]),
        lambda told: told["parts"][0].update(path="../0"),
        lambda told: told["parts"][0].update(path=None),
        lambda told: told["parts"][0].update(directory=".."),
        lambda told: told["parts"][0].update(directory=".git"),
        lambda told: told["parts"][0].update(directory="a/../../b"),
        lambda told: told["parts"][0].update(directory="/etc"),
        lambda told: told["parts"][0].update(directory="x" * 256),
        lambda told: told["parts"][0].update(namespace="\ud800"),
        lambda told: told["parts"][0].update(identity=[]),
        lambda told: told["parts"][0]["identity"].update(more=1),
        lambda told: told["parts"][0]["identity"].update(tp_rank=True),
        lambda told: told["parts"][0]["identity"].update(geometry=["16"]),
        lambda told: told["parts"][0]["identity"].pop("revision"),
    ],
)
def test_documents_that_lie_are_refused(
    tmp_path: Path, store: pfimg.PfStore, altered: Callable[..., str], change: Change
) -> None:
    image = altered(change)
    with open_cache(tmp_path / "other") as cache:
        with pytest.raises(pfimg.FormatError):
            pfimg.warm(cache, image, store=store)
        assert cache.keys("chat") == {}
    with pytest.raises(pfimg.FormatError):
        pfimg.warm(tmp_path / "new" / "directory", image, store=store)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"kind":"engine.pages.v1","kind":"engine.pages.v1","parts":[]}']
)
def test_documents_that_are_none_are_refused(store: pfimg.PfStore, altered: Callable[..., str], raw: bytes) -> None:
    image = altered(raw=raw)
    with open_cache(None) as cache, pytest.raises(pfimg.FormatError):
        pfimg.warm(cache, image, store=store)


def test_other_images_have_no_pages(store: pfimg.PfStore, altered: Callable[..., str]) -> None:
    images = [pfimg.snapshot(store, agent="other"), altered(files=lambda _: None)]
    with open_cache(None) as cache:
        for image in images:
            with pytest.raises(pfimg.FormatError):
                pfimg.warm(cache, image, store=store)
        with pytest.raises(pfimg.FormatError, match="by its id"):
            pfimg.warm(cache, images[0])
        with pytest.raises(pfimg.FormatError, match="by its id"):
            pfimg.warm(cache, "file:///nowhere", store=store)


def sized(size: int) -> Callable[[Any], Any]:
    return lambda entry: pfimg.FsTreeEntry(entry.path, entry.mode, size, "file", entry.blob) if entry.path == "0/t61" else entry


@pytest.mark.parametrize("size", [0, 1, PAGE - 1])
def test_pages_of_another_length_are_left_out(
    tmp_path: Path, store: pfimg.PfStore, altered: Callable[..., str], size: int
) -> None:
    image = altered(files=sized(size))
    with open_cache(tmp_path / "other") as cache:
        report = pfimg.warm(cache, image, store=store)
        assert (report.keys, report.missing) == (1, 1)
        assert read(cache, ["a", "b"], pages(2)) == [False, True]
        cache.flush()
        assert len(list((tmp_path / "other/store/blobs").rglob("*.zst"))) == 1


def test_pages_that_are_too_long_are_refused(tmp_path: Path, store: pfimg.PfStore, altered: Callable[..., str]) -> None:
    image = altered(files=sized(1 << 60))
    with open_cache(tmp_path / "other") as cache, pytest.raises(pfimg.FormatError, match="'a'"):
        pfimg.warm(cache, image, store=store)
    with pytest.raises(pfimg.LimitExceeded):
        pfimg.warm(tmp_path / "new", image, store=store)
    assert not (tmp_path / "new").exists()


def test_pages_that_the_registry_has_lost_are_left_out(tmp_path: Path, store: pfimg.PfStore, ref: str) -> None:
    keys: list[Key] = [str(n) for n in range(9)]
    pfimg.push(store, pfimg.export_pages(fill(tmp_path / "cache", keys, pages(9)), store).image, ref)
    large = sorted(path for path in (tmp_path / "registry/blobs").rglob("*.zst") if path.stat().st_size > PAGE)
    large[0].unlink()
    large[1].write_bytes(large[1].read_bytes()[:-1] + b"?")
    with open_cache(tmp_path / "other") as cache:
        report = pfimg.warm(cache, ref)
        assert (report.keys, report.missing) == (7, 2)
        assert sum(read(cache, keys, pages(9))) == 7


def test_only_who_is_trusted_may_warm(tmp_path: Path, store: pfimg.PfStore, ref: str) -> None:
    ours, theirs = (pfimg.SigningKey.from_text(f"a key of {whom}, 32 bytes or longer") for whom in ("ours", "theirs"))
    pfimg.push(store, pfimg.export_pages(fill(tmp_path / "cache", ["a"], pages(1)), store).image, ref, sign=theirs)
    with open_cache(None) as cache:
        with pytest.raises(pfimg.SignatureError):
            pfimg.warm(cache, ref, trust=ours)
        assert cache.keys("chat") == {}
        assert pfimg.warm(cache, ref, trust=theirs).keys == 1


# A registry behind.


@pytest.fixture
def published(tmp_path: Path, store: pfimg.PfStore, ref: str) -> str:
    keys: list[Key] = [str(n) for n in range(20)]
    return pfimg.push(store, pfimg.export_pages(fill(tmp_path / "cache", keys, pages(20)), store).image, ref).ref


TWENTY: list[Key] = [str(n) for n in range(20)]


@pytest.fixture(params=["directory", "memory"])
def lazy(request: pytest.FixtureRequest, tmp_path: Path, published: str) -> Iterator[pfimg.PageCache]:
    """A cache that has keys, and whose pages are in a registry."""
    with open_cache(tmp_path / "other" if request.param == "directory" else None, registry=published) as cache:
        report = pfimg.warm(cache, published, lazy=True)
        assert (report.keys, report.fetched, report.bytes) == (20, 0, 0)
        yield cache


def test_pages_come_from_the_registry_when_they_are_asked_for(lazy: pfimg.PageCache) -> None:
    assert lazy.leading_hits("chat", [*TWENTY, "none"]) == 20
    assert lazy.has_many("chat", ["3", "none"]) == [True, False]
    assert lazy.known("chat", ["3", "none"]) == [True, False]
    assert lazy.stats()["arena_bytes"] == 0
    assert read(lazy, ["none", *TWENTY[:7]], np.concatenate([pages(1), pages(20)[:7]])) == [False] + [True] * 7
    assert lazy.stats()["hits_registry"] == 7
    assert read(lazy, TWENTY, pages(20)) == [True] * 20
    stats = lazy.stats()
    assert (stats["hits_registry"], stats["hits_arena"], stats["hits_store"], stats["misses"]) == (20, 7, 0, 1)
    assert "pfimg_cache_hits_registry_total 20" in lazy.metrics().splitlines()


def test_what_came_from_the_registry_is_kept(tmp_path: Path, published: str) -> None:
    with open_cache(tmp_path / "other", registry=published) as cache:
        pfimg.warm(cache, published, lazy=True)
        assert read(cache, TWENTY[:5], pages(20)[:5]) == [True] * 5
    with open_cache(tmp_path / "other") as cache:
        assert cache.has_many("chat", TWENTY[:6]) == [True] * 5 + [False]
        assert read(cache, TWENTY[:5], pages(20)[:5]) == [True] * 5


def test_prefetch_fetches_from_the_registry(lazy: pfimg.PageCache) -> None:
    assert lazy.prefetch("chat", TWENTY) == 20
    deadline = threading.Event()
    for _ in range(500):
        if lazy.prefetch("chat", TWENTY) == 0:
            break
        deadline.wait(0.02)
    assert read(lazy, TWENTY, pages(20)) == [True] * 20
    assert (lazy.stats()["hits_arena"], lazy.stats()["hits_registry"]) == (20, 0)


def test_damaged_pages_heal_from_the_registry(tmp_path: Path, published: str) -> None:
    pfimg.warm(tmp_path / "other", published)
    for blob in (tmp_path / "other/store/blobs").rglob("*.zst"):
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with open_cache(tmp_path / "other", registry=published) as cache:
        assert read(cache, TWENTY, pages(20)) == [True] * 20
        assert (cache.stats()["corrupt"], cache.stats()["hits_registry"], cache.stats()["lost"]) == (20, 20, 0)


def test_what_the_registry_has_lost_is_forgotten(tmp_path: Path, lazy: pfimg.PageCache) -> None:
    lost, damaged = sorted(path for path in (tmp_path / "registry/blobs").rglob("*.zst") if path.stat().st_size > PAGE)[:2]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert sum(read(lazy, TWENTY, pages(20))) == 18
    assert lazy.stats()["lost"] == 2
    assert sum(lazy.has_many("chat", TWENTY)) == 18


def test_a_registry_that_fails_is_a_miss_and_is_left_alone(
    lazy: pfimg.PageCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(*_: object) -> set[str]:
        asked.append(1)
        raise pfimg.BackendError("the service is down")

    with monkeypatch.context() as down:
        down.setattr("pfimg.transfer.repair", fail)
        for _ in range(3):
            assert read(lazy, TWENTY, pages(20)) == [False] * 20
    assert (len(asked), len(caplog.records)) == (1, 1)
    assert "the service is down" in caplog.text
    # Nobody should wait for them now, but nothing is forgotten.
    assert lazy.leading_hits("chat", TWENTY) == 0
    monkeypatch.setattr(lazy._levels, "_paused_until", 0.0)
    assert lazy.leading_hits("chat", TWENTY) == 20
    assert read(lazy, TWENTY, pages(20)) == [True] * 20


def test_lengths_that_lie_are_misses_and_wrong_buffers_are_errors(
    tmp_path: Path, store: pfimg.PfStore, altered: Callable[..., str], ref: str
) -> None:
    pfimg.push(store, altered(files=sized(100)), ref)
    with open_cache(tmp_path / "other", registry=ref) as cache:
        pfimg.warm(cache, ref, lazy=True)
        out = [bytearray(100), bytearray(PAGE)]
        with pytest.raises(pfimg.FormatError, match="100 bytes"):
            cache.get_many("chat", ["a", "b"], out=pages(2))
        assert cache.get_many("chat", ["a", "b"], out=out) == [False, True]
        assert cache.keys("chat") == {"b": PAGE}
        assert bytes(out[1]) == pages(2)[1].tobytes()


def test_a_key_deleted_while_its_page_comes_leaves_nothing(
    tmp_path: Path, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_cache(tmp_path / "other", registry=published) as cache:
        pfimg.warm(cache, published, lazy=True)
        fetch = cache._levels.fetch

        def slow(*args: Any) -> bool:
            cache.delete("chat", TWENTY)
            return fetch(*args)

        monkeypatch.setattr(cache._levels, "fetch", slow)
        read(cache, TWENTY, pages(20))
        cache.flush()
        assert list((tmp_path / "other/store/blobs").rglob("*.zst")) == []
        assert cache.stats()["arena_bytes"] == 0


def test_a_registry_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(pfimg.BadRef):
        open_cache(tmp_path / "other", registry="registry")
    assert not (tmp_path / "other").exists()
    with open_cache(None) as cache, pytest.raises(pfimg.FormatError, match="registry"):
        pfimg.warm(cache, f"file://{tmp_path}", lazy=True)
