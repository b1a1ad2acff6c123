"""Pages under engines' keys: what was put comes back, from memory or from the store, or is a miss. hashlib is the oracle."""

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfimg

PAGE = 4096
LLAMA = pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd")

Rows = npt.NDArray[np.uint8]

# Opens a cache in a directory, puts pages for ever, and says so once the first batch is on disk.
WRITER = """
import sys
import numpy as np, pfimg
cache = pfimg.PageCache(sys.argv[1], page_bytes=4096, arena_bytes=64 * 4096, arena_path=sys.argv[1] + ".arena")
cache.bind("chat", pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd"))
random = np.random.default_rng(7)
for batch in range(1000000):
    cache.put_many("chat", [f"{batch}/{n}" for n in range(16)], random.integers(0, 256, (16, 4096), dtype=np.uint8))
    if batch == 0:
        cache.flush()
        print("started", flush=True)
"""


def pages(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE), dtype=np.uint8)


def open_cache(path: Path | None, slots: int = 64, *, warm: bool = False, store_bytes: int | None = None) -> pfimg.PageCache:
    arena = path.with_suffix(".arena") if warm and path is not None else None
    cache = pfimg.PageCache(path, page_bytes=PAGE, arena_bytes=slots * PAGE, arena_path=arena, store_bytes=store_bytes)
    cache.bind("chat", LLAMA)
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[pfimg.PageCache]:
    with open_cache(tmp_path / "cache") as opened:
        yield opened


def read(cache: pfimg.PageCache, keys: list[str], expected: Rows, namespace: str = "chat") -> list[bool]:
    """What is found; whatever is found is right."""
    out = np.zeros_like(expected)
    mask = cache.get_many(namespace, keys, out=out)
    assert (out[mask] == expected[mask]).all()
    return mask


def test_pages_come_back_under_their_keys(cache: pfimg.PageCache) -> None:
    batch = pages(20)
    keys = [f"k{n}" for n in range(20)]
    cache.put_many("chat", keys, batch)
    assert read(cache, keys, batch) == [True] * 20
    assert read(cache, ["none", *keys[:3]], np.concatenate([batch[-1:], batch[:3]])) == [False, True, True, True]
    assert cache.has_many("chat", ["k3", "none"]) == [True, False]
    assert cache.leading_hits("chat", [*keys[:7], "none", *keys[7:]]) == 7
    assert cache.leading_hits("chat", keys) == 20
    assert cache.leading_hits("chat", []) == 0


def test_text_and_bytes_are_different_keys(cache: pfimg.PageCache) -> None:
    batch = pages(2)
    cache.put_many("chat", ["a", b"a"], batch)
    out = np.zeros_like(batch)
    assert cache.get_many("chat", [b"a", "a"], out=out) == [True, True]
    assert (out == batch[::-1]).all()


@pytest.mark.torch
def test_torch_tensors_and_memoryviews_are_used_in_place(cache: pfimg.PageCache) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(8 * PAGE // 2, dtype=torch.int16).reshape(8, PAGE // 2)
    cache.put_many("chat", [str(n) for n in range(8)], tensor)
    out = torch.zeros_like(tensor)
    assert cache.get_many("chat", [str(n) for n in range(8)], out=out) == [True] * 8
    assert torch.equal(out, tensor)
    view = memoryview(bytearray(2 * PAGE))
    assert cache.get_many("chat", ["7", "0"], out=[view[:PAGE], view[PAGE:]]) == [True, True]
    assert bytes(view[PAGE:]) == tensor[0].numpy().tobytes()


def test_what_memory_gave_up_is_read_from_the_store(cache: pfimg.PageCache) -> None:
    batch = pages(300)
    keys = [str(n) for n in range(300)]
    for start in range(0, 300, 50):
        cache.put_many("chat", keys[start : start + 50], batch[start : start + 50])
    cache.flush()
    assert cache.leading_hits("chat", keys) == 300
    assert read(cache, keys, batch) == [True] * 300
    stats = cache.stats()
    assert stats["hits_arena"] + stats["hits_store"] == 300
    assert stats["hits_store"] > 0
    assert stats["written"] == 300
    # A batch that is larger than all of memory.
    more = pages(200, seed=1)
    cache.put_many("chat", [f"more{n}" for n in range(200)], more)
    assert read(cache, [f"more{n}" for n in range(200)], more) == [True] * 200


def test_equal_pages_are_kept_once(cache: pfimg.PageCache, tmp_path: Path) -> None:
    cache.bind("other", LLAMA)
    batch = pages(10)
    for namespace in ("chat", "other"):
        cache.put_many(namespace, [f"{namespace}{n}" for n in range(10)], batch)
    cache.flush()
    stats = cache.stats()
    assert (stats["arena_bytes"], stats["indexed_bytes"], stats["keys"]) == (10 * PAGE, 10 * PAGE, 20)
    assert len(list((tmp_path / "cache/store/blobs").rglob("*.zst"))) == 10
    assert cache.delete("chat", [f"chat{n}" for n in range(10)] + ["none"]) == 10
    cache.flush()
    assert read(cache, [f"other{n}" for n in range(10)], batch, "other") == [True] * 10
    cache.clear("other")
    cache.flush()
    assert list((tmp_path / "cache/store/blobs").rglob("*.zst")) == []
    assert cache.stats()["arena_bytes"] == 0


@pytest.mark.parametrize("warm", [True, False])
def test_a_restart_keeps_the_pages(tmp_path: Path, warm: bool) -> None:
    batch = pages(100)
    keys = [str(n) for n in range(100)]
    with open_cache(tmp_path / "cache", warm=warm) as cache:
        cache.put_many("chat", keys, batch)
    with pytest.raises(pfimg.StoreError, match="closed"):
        cache.leading_hits("chat", keys)
    with open_cache(tmp_path / "cache", warm=warm) as cache:
        assert cache.leading_hits("chat", keys) == 100
        assert read(cache, keys, batch) == [True] * 100
        assert (cache.stats()["hits_arena"] > 0) == warm


def test_another_identity_never_gets_the_pages(tmp_path: Path) -> None:
    batch = pages(3)
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", ["a", "b", "c"], batch)
        with pytest.raises(pfimg.StoreError, match="bound to no identity"):
            cache.leading_hits("unbound", ["a"])
    with pfimg.PageCache(tmp_path / "cache", page_bytes=PAGE, arena_bytes=64 * PAGE) as cache:
        with pytest.raises(pfimg.StoreError, match="call bind first"):
            cache.leading_hits("chat", ["a"])
        others = [replace(LLAMA, tp_rank=1, tp_size=2), replace(LLAMA, revision="v2"), replace(LLAMA, geometry=(32, 2, 2, 32))]
        for other in others:
            with pytest.raises(pfimg.StoreError, match="another identity") as refused:
                cache.bind("chat", other)
            assert refused.value.code == "identity"
        cache.bind("chat", LLAMA)
        assert read(cache, ["a", "b", "c"], batch) == [True] * 3
        cache.clear("chat")
        cache.bind("chat", others[0])
        assert cache.leading_hits("chat", ["a"]) == 0


@pytest.mark.usefixtures("cache")
def test_one_process_has_a_directory(tmp_path: Path) -> None:
    with pytest.raises(pfimg.StoreError, match="open to write already"):
        open_cache(tmp_path / "cache")


def test_damaged_pages_are_misses_and_heal(tmp_path: Path) -> None:
    batch = pages(10)
    keys = [str(n) for n in range(10)]
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", keys, batch)
    damaged = sorted((tmp_path / "cache/store/blobs").rglob("*.zst"))[:4]
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(content)
    with open_cache(tmp_path / "cache") as cache:
        assert sum(read(cache, keys, batch)) == 6
        stats = cache.stats()
        assert (stats["corrupt"], stats["lost"], stats["misses"]) == (4, 4, 4)
        assert sum(cache.has_many("chat", keys)) == 6
        cache.put_many("chat", keys, batch)
        assert read(cache, keys, batch) == [True] * 10


def test_damaged_rows_of_the_index_are_not_there(tmp_path: Path) -> None:
    batch = pages(3)
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", ["a", "b", "c"], batch)
    digest = "sha256:" + hashlib.sha256(batch[1].tobytes()).hexdigest()
    with sqlite3.connect(tmp_path / "cache/index.sqlite") as database:
        database.execute("UPDATE pages SET digest = ? WHERE key = ?", (digest, b"ta"))
    database.close()
    with open_cache(tmp_path / "cache") as cache:
        assert read(cache, ["a", "b", "c"], batch) == [False, True, True]


def test_namespaces_have_quotas_and_ages(cache: pfimg.PageCache) -> None:
    cache.bind("small", LLAMA, max_bytes=5 * PAGE)
    batch = pages(8)
    keys = [str(n) for n in range(8)]
    cache.put_many("small", keys[:5], batch[:5])
    assert read(cache, keys[:1], batch[:1], "small") == [True]
    cache.put_many("small", keys[5:], batch[5:])
    # What was used last stays.
    assert cache.has_many("small", keys) == [True, False, False, False, True, True, True, True]
    cache.bind("old", LLAMA, ttl_seconds=0)
    cache.put_many("old", keys, batch)
    assert cache.leading_hits("old", keys) == 0
    cache.flush()
    assert cache.stats()["keys"] == 5


def test_the_store_keeps_to_its_limit(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache", slots=16, store_bytes=30 * PAGE) as cache:
        for n in range(10):
            cache.put_many("chat", [f"{n}/{k}" for k in range(8)], pages(8, seed=n))
        cache.flush()
        assert cache.stats()["indexed_bytes"] <= 30 * PAGE
        assert len(list((tmp_path / "cache/store/blobs").rglob("*.zst"))) <= 30
        assert read(cache, [f"9/{k}" for k in range(8)], pages(8, seed=9)) == [True] * 8


def test_a_cache_in_memory_alone() -> None:
    with open_cache(None, slots=32) as cache:
        batch = pages(200)
        keys = [str(n) for n in range(200)]
        for n in range(200):
            cache.put_many("chat", [keys[n]], batch[n : n + 1])
        found = sum(read(cache, keys, batch))
        assert 25 <= found <= 32
        # The index has forgotten what cannot be there.
        assert cache.stats()["lost"] == 4 * 32 - found


def test_prefetch_brings_pages_into_memory(tmp_path: Path) -> None:
    batch = pages(20)
    keys = [str(n) for n in range(20)]
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", keys, batch)
    with open_cache(tmp_path / "cache") as cache:
        assert cache.prefetch("chat", [*keys, "none"]) == 20
        cache.flush()
        assert cache.prefetch("chat", keys) == 0
        assert read(cache, keys, batch) == [True] * 20
        assert cache.stats()["hits_arena"] == 20


@pytest.mark.parametrize("stored", [True, False])
def test_pinned_pages_make_no_room(tmp_path: Path, *, stored: bool) -> None:
    limit = 8 * PAGE if stored else None
    with open_cache(tmp_path / "cache" if stored else None, slots=8, store_bytes=limit) as cache:
        cache.bind("small", LLAMA, max_bytes=2 * PAGE)
        content = pages(40)
        cache.put_many("chat", ["a", "b"], content[:2])
        cache.put_many("small", ["c"], content[2:3])
        assert cache.pin("chat", ["a", "none", "b"]) == [True, False, True]
        assert cache.pin("chat", ["a"]) == [True]
        assert cache.pin("small", ["c"]) == [True]
        for n in range(3, 39, 2):
            cache.put_many("chat", [f"{n}"], content[n : n + 1])
            cache.put_many("small", [f"{n}"], content[n + 1 : n + 2])
            cache.flush()
        assert read(cache, ["a", "b"], content[:2]) == [True, True]
        assert read(cache, ["c"], content[2:3], "small") == [True]
        cache.unpin("chat", ["a", "b", "none", "b"])
        cache.unpin("small", ["c"])
        for n in range(10):
            cache.put_many("chat", [f"later {n}"], pages(1, 100 + n))
            cache.flush()
        assert read(cache, ["b"], content[1:2]) == [False]
        assert read(cache, ["a"], content[:1]) == [True]
        cache.unpin("chat", ["a"])
        cache.delete("chat", ["a"])
        assert cache.pin("chat", ["a"]) == [False]


def test_keys_sizes_and_namespaces_are_told(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache") as cache:
        cache.put_many("chat", ["a", b"b"], [b"x" * 10, b"y" * 20])
        assert cache.sizes("chat", [b"b", "b", "a"]) == [20, None, 10]
        assert cache.keys("chat") == {"a": 10, b"b": 20}
    with pfimg.PageCache(tmp_path / "cache", page_bytes=PAGE, arena_bytes=8 * PAGE) as cache:
        assert cache.namespaces() == {"chat": LLAMA}
        with pytest.raises(pfimg.StoreError, match="bind"):
            cache.keys("chat")


def test_what_comes_and_goes_is_told_in_order(tmp_path: Path) -> None:
    told: list[tuple[str, bytes | str, int]] = []
    with open_cache(tmp_path / "cache", store_bytes=2 * PAGE) as cache:
        cache.on_change(lambda *change: told.append(change))
        cache.put_many("chat", ["a", b"b"], pages(2))
        cache.put_many("chat", ["a"], [b"x" * 10])
        cache.flush()
        cache.put_many("chat", ["c"], pages(1, 1))
        cache.flush()
        cache.delete("chat", ["a", "none"])
        cache.clear("chat")
    assert told == [
        ("chat", "a", PAGE), ("chat", b"b", PAGE), ("chat", "a", -PAGE), ("chat", "a", 10),
        ("chat", "c", PAGE), ("chat", b"b", -PAGE), ("chat", "a", -10), ("chat", "c", -PAGE),
    ]  # fmt: skip


def test_wrong_arguments_are_named(cache: pfimg.PageCache) -> None:
    with pytest.raises(pfimg.FormatError, match="1 keys for 2 buffers"):
        cache.put_many("chat", ["a"], pages(2))
    with pytest.raises(pfimg.FormatError, match="2 rows for 1 keys"):
        cache.get_many("chat", ["a"], out=pages(2))
    with pytest.raises(pfimg.LimitExceeded):
        cache.put_many("chat", ["a"], [b"x" * (PAGE + 1)])
    # What failed has left nothing behind that puts would wait for.
    assert cache.stats()["waiting_pages"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_is_told_to_open_its_own(cache: pfimg.PageCache) -> None:
    child = os.fork()
    if child == 0:
        try:
            cache.close()
            cache.flush()
        except pfimg.StoreError as error:
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_metrics_are_prometheus_text(cache: pfimg.PageCache) -> None:
    cache.put_many("chat", ["a"], pages(1))
    read(cache, ["a", "b"], pages(2))
    lines = cache.metrics().splitlines()
    assert "pfimg_cache_hits_arena_total 1" in lines
    assert "pfimg_cache_misses_total 1" in lines
    assert "# TYPE pfimg_cache_keys gauge" in lines
    samples = [line.split() for line in lines if not line.startswith("#")]
    assert [name for name, value in samples if not value.isdigit()] == []


def test_threads_share_a_cache(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache", slots=48) as cache:
        batches = [pages(16, seed=n) for n in range(6)]
        wrong: list[int] = []

        def work(seed: int) -> None:
            chosen = random.Random(seed)
            out = np.empty_like(batches[0])
            for _ in range(15):
                n = chosen.randrange(6)
                keys = [f"{n}/{k}" for k in range(16)]
                cache.put_many("chat", keys, batches[n])
                mask = cache.get_many("chat", keys, out=out)
                wrong.append(int((out[mask] != batches[n][mask]).sum()) + mask.count(False))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [0] * 60
        cache.flush()
        assert cache.stats()["waiting_pages"] == 0


def hold_thread(cache: pfimg.PageCache) -> threading.Event:
    """Has the cache's thread wait before its next job."""
    gate = threading.Event()

    def wait() -> None:
        gate.wait()

    cache._writer.run(wait)
    return gate


@pytest.mark.parametrize("stored", [True, False])
def test_a_page_that_is_removed_while_it_is_put_again_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    """The put finds it in the arena; its removal, which was under way, comes before the key stands for it."""
    content = pages(3)
    with open_cache(tmp_path / "cache" if stored else None) as cache:
        cache.put_many("chat", ["a"], content[:1])
        cache.flush()
        gate = hold_thread(cache)
        cache.delete("chat", ["a"])
        put = cache._index.put

        def after_removal(*args: Any) -> list[str]:
            gate.set()
            done = threading.Event()
            cache._writer.run(done.set)
            assert done.wait(10)
            assert cache.stats()["arena_bytes"] == 2 * PAGE
            return put(*args)

        with monkeypatch.context() as patched:
            patched.setattr(cache._index, "put", after_removal)
            cache.put_many("chat", ["b", "a", "c"], content[[1, 0, 2]])
        assert read(cache, ["a", "b", "c"], content) == [True] * 3
        cache.flush()
        assert read(cache, ["a", "b", "c"], content) == [True] * 3
    if stored:
        with open_cache(tmp_path / "cache") as cache:
            assert read(cache, ["a", "b", "c"], content) == [True] * 3


def test_a_page_gets_no_key_while_it_is_removed() -> None:
    with open_cache(None) as cache:
        cache.put_many("chat", ["a"], pages(1))
        (digest,) = cache._index.find("chat", ["a"])
        assert digest is not None
        entered, later = threading.Event(), threading.Event()

        removed: list[str] = []

        def remove(digests: list[str]) -> None:
            entered.set()
            assert not later.wait(0.2), "a key came to stand for it"
            removed.extend(digests)

        def put() -> None:
            entered.wait()
            cache._index.put("chat", ["b"], [digest], [PAGE])
            later.set()

        cache._index.unless_referred([digest], remove)
        assert not removed
        cache._index.drop("chat", ["a"])
        thread = threading.Thread(target=put)
        thread.start()
        cache._index.unless_referred([digest], remove)
        assert removed == [digest]
        thread.join()
        assert later.is_set()


def test_a_killed_process_leaves_whole_pages(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    generator = np.random.default_rng(7)
    batches = [generator.integers(0, 256, (16, PAGE), dtype=np.uint8) for _ in range(200)]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
        writer.kill()
    with open_cache(directory, warm=True) as cache:
        found = [read(cache, [f"{n}/{k}" for k in range(16)], batch) for n, batch in enumerate(batches)]
        assert found[0] == [True] * 16


Step = tuple[str, int, int]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["put", "get", "delete", "hits", "clear"]), st.integers(0, 11), st.integers(0, 5))))
def test_it_behaves_as_a_dictionary_that_may_forget(steps: list[Step]) -> None:
    contents = pages(6)
    model: dict[str, int] = {}
    with open_cache(None, slots=8) as cache:
        for call, number, page in steps:
            key = str(number)
            if call == "put":
                cache.put_many("chat", [key], contents[page : page + 1])
                model[key] = page
            elif call == "get":
                out = np.zeros((1, PAGE), np.uint8)
                # There are fewer pages than slots, so none has to go.
                assert cache.get_many("chat", [key], out=out) == [key in model]
                assert key not in model or (out[0] == contents[model[key]]).all()
            elif call == "delete":
                assert cache.delete("chat", [key]) == (model.pop(key, None) is not None)
            elif call == "hits":
                keys = [str(n) for n in range(12)]
                leading = next((n for n, key in enumerate(keys) if key not in model), 12)
                assert cache.leading_hits("chat", keys) == leading
            else:
                cache.clear("chat")
                cache.bind("chat", LLAMA)
                model.clear()


def test_pages_may_be_named_by_blake3(tmp_path: Path) -> None:
    content = pages(8)
    with pfimg.PageCache(tmp_path / "cache", page_bytes=PAGE, arena_bytes=2 * PAGE, digest="blake3") as cache:
        cache.bind("chat", LLAMA)
        cache.put_many("chat", [str(n) for n in range(8)], content)
    blob = tmp_path / "cache/store/blobs/blake3"
    assert sum(1 for _ in blob.rglob("*.zst")) == 8
    with open_cache(tmp_path / "cache") as again:
        assert again.digest == "blake3"
        assert read(again, [str(n) for n in range(8)], content) == [True] * 8
        with pytest.raises(pfimg.FormatError, match="named by blake3"):
            again.adopt("chat", ["new"], ["sha256:" + "0" * 64], [PAGE])
    with pytest.raises(pfimg.FormatError):
        pfimg.PageCache(tmp_path / "cache", page_bytes=PAGE, arena_bytes=2 * PAGE, digest="sha256")
    with pytest.raises(pfimg.FormatError):
        pfimg.PageCache(None, page_bytes=PAGE, arena_bytes=2 * PAGE, digest="md5")
    with pfimg.PageCache(None, page_bytes=PAGE, arena_bytes=8 * PAGE, digest="blake3") as cache:
        cache.bind("chat", LLAMA)
        cache.put_many("chat", ["a"], content[:1])
        assert read(cache, ["a"], content[:1]) == [True]
