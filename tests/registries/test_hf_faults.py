"""A Hub in trouble: commits that are refused, lost or forestalled, contents that are cut, and processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.hf_places import REF, REPO, HfPlace
from tests.registries.test_contract import assert_nothing_is_visible, everything

import pfimg
from pfimg.registries.base import Traffic, blob_name
from pfimg.registries.connections import Patience
from pfimg.registries.hf import repository, transport
from pfimg.registries.hf.access import Access
from pfimg.registries.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hub import Hub


@pytest.fixture
def place(hub: Hub) -> HfPlace:
    return HfPlace(hub)


def assert_whole(store: pfimg.PfStore, other: pfimg.PfStore, image: str, ref: str = REF) -> None:
    assert pfimg.pull(ref, other).image == image
    assert everything(other, image) == everything(store, image)


# Commits.


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize("status", [409, 412, 413, 429, 500, 503])
def test_a_commit_that_is_refused_is_made_again(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, status: int, layout: str
) -> None:
    hub.fault("POST", "/commit/", times=2, status=status, headers={"Retry-After": "0"})
    sent = pfimg.push(store, image, REF, layout=layout)
    assert sent.retries == 2
    assert [seen.status for seen in hub.seen("POST", "/commit/")] == [status, status, 200]
    assert_whole(store, other, image)


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 504}, {"drop": True}], ids=["500", "504", "drop"])
@pytest.mark.parametrize("applied", [False, True], ids=["not done", "done"])
def test_a_commit_whose_answer_is_lost_is_made_once(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, how: dict[str, Any], applied: bool
) -> None:
    hub.fault("POST", "/commit/", applied=applied, **how)
    pfimg.push(store, image, f"{REF}#mine")
    assert len(hub.log(REPO)) == 2
    assert len(hub.seen("POST", "/commit/")) == 1 if applied else 2
    assert_whole(store, other, image, f"{REF}#mine")


def test_the_hub_is_given_the_time_it_asks_for(hub: Hub, store: pfimg.PfStore, image: str) -> None:
    headers = {"RateLimit": '"api";r=0;t=2', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
    hub.fault("POST", "/commit/", status=429, headers=headers)
    assert pfimg.push(store, image, REF).seconds > 2


def test_what_others_commit_meanwhile_is_kept(
    hub: Hub, place: HfPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    """Another writer describes the repository and commits while this one sends."""
    pfimg.push(store, image, REF)
    theirs = b'{"pfimg":1,"digest":"sha256","features":["packs"]}'

    def commit(event: pfimg.Progress) -> None:
        if event.phase == "walk":
            hub.fault("POST", "/commit/", drop=True)  # so that the head is looked at again
        if event.phase == "send" and event.done == event.total:
            hub.write(REPO, {"pfimg.json": theirs, "note.txt": b"theirs"})

    fork = pfimg.snapshot(store, agent="another")
    pfimg.push(store, fork, f"{REF}#fork", progress=commit)
    assert place.files()["note.txt"] == b"theirs"
    assert place.files()["pfimg.json"] == b'{"pfimg":1,"digest":"sha256","features":["packs","names"]}'
    assert_whole(store, other, fork, f"{REF}#fork")
    assert_whole(store, other, image)


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_what_others_take_away_meanwhile_is_sent_again(
    place: HfPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str], layout: str
) -> None:
    parent, fork = make_image(0), make_image(1)
    pfimg.push(store, parent, REF, layout=layout)
    lost = next(path for path in place.files() if path.endswith((blob_name(store.get_manifest(fork).world.env), ".pack")))

    def take_away(event: pfimg.Progress) -> None:
        if event.phase == "send" and event.done == 1 and lost in place.files():
            place.replace(lost, None)

    pfimg.push(store, fork, f"{REF}#fork", layout=layout, progress=take_away)
    assert_whole(store, other, fork, f"{REF}#fork")


def test_a_hub_that_goes_on_failing_is_told_of_and_a_second_push_succeeds(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_FAILURES", 2)
    monkeypatch.setattr(transport, "_TRIES", 4)
    for status, code in ((503, "backend"), (429, "rate_limit"), (409, "conflict"), (403, "forbidden")):
        fault = hub.fault("POST", "/commit/", times=99, status=status)
        with pytest.raises(pfimg.BackendError, match=f"answered {status}") as caught:
            pfimg.push(store, image, REF)
        assert (caught.value.code, caught.value.status, caught.value.retryable) == (code, status, status != 403)
        assert not pfimg.exists(REF)
        fault.times = 0
    sent = pfimg.push(store, image, REF)
    assert (sent.sent, sent.skipped) == (0, len(everything(store, image)))  # all of it was uploaded by the first
    assert_whole(store, other, image)


# Contents.


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("POST", "repos/create", {"status": 503}),
        ("POST", "repos/create", {"status": 500, "applied": True}),
        ("POST", "objects/batch", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST", "objects/verify", {"status": 500}),
        ("PUT", "/upload/", {"status": 500}),
        ("PUT", "/upload/", {"drop": True, "applied": True}),
        ("PUT", "/upload/", {"status": 403}),  # an address that has expired
        ("POST", "complete_multipart", {"status": 500, "applied": True}),
        ("GET", "/revision/", {"drop": True}),
        ("POST", "/preupload/", {"status": 502}),
    ],
)
def test_a_step_that_fails_is_made_again(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, method: str, path: str, how: dict[str, Any]
) -> None:
    hub.limits.part_bytes = 40
    fault = hub.fault(method, path, **how)
    pfimg.push(store, image, REF)
    assert fault.times == 0
    assert_whole(store, other, image)


def test_a_body_that_is_cut_is_asked_for_again(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image()
    pfimg.push(store, image, REF)
    hub.fault("GET", "/content/", truncate=20, times=3)
    hub.fault("GET", "/resolve-cache/.*manifest.json", truncate=50)
    hub.fault("HEAD|GET", "/resolve/", status=503)
    assert pfimg.pull(REF, other).retries >= 4
    assert everything(other, image) == everything(store, image)


def test_a_content_that_is_always_cut_is_told_of_and_nothing_is_visible(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_PATIENCE", Patience(attempts=2, pause=0.01))
    pfimg.push(store, image, REF)
    fault = hub.fault("GET", "/content/", truncate=20, times=999)
    with pytest.raises(pfimg.BackendError, match=r"broke off|bytes"):
        pfimg.pull(REF, other)
    assert_nothing_is_visible(other)
    fault.times = 0
    assert_whole(store, other, image)


def test_ranges_whose_addresses_have_expired_are_looked_for_again(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, tmp_path: Any
) -> None:
    root = tmp_path / "work"
    root.mkdir()
    for name in "abc":
        (root / name).write_bytes(name.encode() * 100 + bytes(range(256)) * 36_000)
    image = pfimg.snapshot(store, agent="tester", fs_root=root)
    pfimg.push(store, image, REF, layout="packed", codec="store")
    hub.requests.clear()
    hub.fault("GET", "/content/", status=403, skip=2)
    assert_whole(store, other, image)
    assert 403 in {seen.status for seen in hub.seen("GET", "/content/")}


def test_an_address_that_has_expired_for_several_ranges_at_once_is_looked_for_again(
    hub: Hub, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, REF, layout="packed")
    (name,) = (path for path in hub.files(REPO, "main") if path.endswith(".pack"))
    content = hub.files(REPO, "main")[name]
    access = Access.of(endpoint=hub.url, token=hub.token())
    repo = repository.Repository(REPO, access, Traffic())
    assert repo.fetch_range("main", name, 0, 4) == content[:4]  # from now on the address is known
    hub.requests.clear()
    fetch_range = repo._client.fetch_range
    both = threading.Barrier(2, timeout=30)
    expired = {(0, 8), (8, 8)}

    def fetch(url: str, offset: int, length: int) -> Any:
        if (offset, length) in expired:
            expired.discard((offset, length))
            both.wait()
            raise pfimg.BackendError("it has expired", status=403)
        return fetch_range(url, offset, length)

    monkeypatch.setattr(repo._client, "fetch_range", fetch)
    pool = Workers(2, Traffic(), REF)
    got = dict(pool.map(lambda offset: repo.fetch_range("main", name, offset, 8), (0, 8)))
    assert got == {0: content[:8], 8: content[8:16]}
    assert 1 <= len(hub.seen("HEAD", "/resolve/")) <= 2


def test_a_hub_that_does_not_answer_is_not_waited_for_without_end(
    hub: Hub, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "STALL_SECONDS", 1.0)
    hub.fault("POST", "objects/batch", drip=(1, 3600))
    with pytest.raises(pfimg.RegistryTimeout, match="in 1 seconds"):
        pfimg.push(store, image, REF)
    assert not pfimg.exists(REF)
    hub.hurried.set()
    for thread in threading.enumerate():
        if thread.name == "pfimg-request":  # nobody waited for it
            thread.join()
    hub.hurried.clear()
    monkeypatch.setattr(repository, "STALL_SECONDS", 60.0)
    pfimg.push(store, image, REF)
    assert pfimg.exists(REF)


KILLED = """
import os, signal, sys, pfimg
from pfimg.registries.hf import transport
transport._FIRST_PACE = transport._MOST_PACE = 20
_, path, image, ref, at = sys.argv
def kill(event):
    if event.phase == "send" and event.done >= int(at):
        os.kill(os.getpid(), signal.SIGKILL)
pfimg.push(pfimg.PfStore.open(path), image, ref, progress=kill)
"""


def test_a_push_that_is_killed_between_commits_is_completed(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=300)
    blobs = len(everything(store, image))
    done = subprocess.run([sys.executable, "-c", KILLED, store.root, image, REF, str(blobs - 1)], check=False)
    assert done.returncode == -signal.SIGKILL
    commits = len(hub.log(REPO))
    assert commits > 2
    assert not pfimg.exists(REF)
    sent = pfimg.push(store, image, REF)
    assert sent.skipped > 20 * (commits - 1)
    assert_whole(store, other, image)
