import fcntl
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

import pfimg
from pfimg import locks, seen

REF = "file:///srv/größe#one"


def image(store: pfimg.PfStore, created_at: str, *parents: str) -> pfimg.Manifest:
    blob = store.put(b"x")
    return pfimg.Manifest(
        agent=pfimg.AgentInfo("tester"),
        model=pfimg.ModelLayer(blob, blob),
        cache=pfimg.CacheLayer(blob),
        world=pfimg.WorldLayer(blob, blob, blob),
        effects=pfimg.EffectsLayer(blob),
        trace=pfimg.TraceLayer(blob),
        created_at=created_at,
        parents=list(parents),
    )


def document(store: pfimg.PfStore) -> Path:
    return Path(store.root) / "seen" / f"{hashlib.sha256(REF.encode()).hexdigest()}.json"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000001Z"),
        ("2026-01-01T00:00:00.123Z", "2026-01-01T00:00:00.123456Z"),
        ("2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00Z"),
    ],
)
def test_the_time_decides(store: pfimg.PfStore, earlier: str, later: str) -> None:
    old, new = image(store, earlier), image(store, later)
    for first in (old, new):
        seen.check(store, REF, first)
        seen.remember(store, REF, first, allow_older=False)
    with pytest.raises(pfimg.SignatureError, match=f"{old.id} was made at {earlier}, before {new.id} at {later}"):
        seen.check(store, REF, old)
    seen.check(store, REF + "x", old)
    seen.remember(store, REF, old, allow_older=False)  # as a slower pull would
    assert json.loads(document(store).read_bytes()) == {"ref": REF, "image": new.id, "created_at": later}
    seen.remember(store, REF, old, allow_older=True)
    seen.check(store, REF, old)


def test_a_child_may_come_from_a_slow_clock(store: pfimg.PfStore) -> None:
    parent = image(store, "2026-01-01T00:00:10Z")
    seen.remember(store, REF, parent, allow_older=False)
    child = image(store, "2026-01-01T00:00:00Z", parent.id)
    seen.check(store, REF, child)
    seen.remember(store, REF, child, allow_older=False)
    assert json.loads(document(store).read_bytes())["image"] == child.id


def test_others_of_the_same_time_may_follow(store: pfimg.PfStore) -> None:
    one, two = image(store, "2026-01-01T00:00:00Z"), image(store, "2026-01-01T00:00:00Z", "sha256:" + "0" * 64)
    seen.remember(store, REF, one, allow_older=False)
    seen.check(store, REF, two)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"image":"x","created_at":"yesterday"}', b'{"image":"x","created_at":5}']
)
def test_a_damaged_memory_is_no_memory_lost(store: pfimg.PfStore, content: bytes) -> None:
    document(store).parent.mkdir()
    document(store).write_bytes(content)
    with pytest.raises(pfimg.FormatError, match="remove it") as caught:
        seen.check(store, REF, image(store, "2026-01-01T00:00:00Z"))
    assert caught.value.path == str(document(store))


def _remember(root: str, minute: int) -> None:
    store = pfimg.PfStore.open(root)
    seen.remember(store, REF, image(store, f"2026-01-01T00:{minute:02}:00Z"), allow_older=False)


def test_pulls_at_once_leave_the_newest(store: pfimg.PfStore) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_remember, [(str(store.root), minute) for minute in (3, 9, 1, 7, 5, 2, 8)])
    assert json.loads(document(store).read_bytes())["created_at"] == "2026-01-01T00:09:00Z"
    assert [path.name for path in document(store).parent.iterdir()] == [document(store).name]
    assert store.verify().foreign == ()


def test_a_directory_with_any_name_is_remembered(store: pfimg.PfStore) -> None:
    ref = os.fsdecode(b"file:///srv/\xff")
    old, new = image(store, "2026-01-01T00:00:00Z"), image(store, "2026-01-01T00:00:01Z")
    seen.remember(store, ref, new, allow_older=False)
    with pytest.raises(pfimg.SignatureError, match="before"):
        seen.check(store, ref, old)


def test_somebody_who_is_stopped_stops_nobody_for_ever(store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = image(store, "2026-01-01T00:00:00Z"), image(store, "2026-01-01T00:00:01Z")
    seen.remember(store, REF, first, allow_older=False)
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    other = os.open(document(store).parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(pfimg.StoreError, match="others have held its lock for 0 seconds") as caught:
        seen.remember(store, REF, second, allow_older=False)
    assert caught.value.code == "busy"
    os.close(other)
    seen.remember(store, REF, second, allow_older=False)
    assert json.loads(document(store).read_bytes())["image"] == second.id
