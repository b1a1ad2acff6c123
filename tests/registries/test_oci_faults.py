"""Registries of containers that err, or whose answers get lost: a real one, seen through a proxy that does that."""

from __future__ import annotations

import json
import random
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.oci_places import OciPlace, digest_of
from tests.registries.test_contract import everything
from tests.servers import Response, request
from tests.servers.proxy import Act, Proxy, answer, applied, lost, passed, proxy, respond
from tests.servers.scripted import Answer, scripted

import pfimg
from pfimg.registries import web
from pfimg.registries.connections import Patience
from pfimg.registries.oci import OciTransport, address, repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import OciServer
    from tests.servers.scripted import Peer

# Seconds; what a test waits for in vain, it waits for about so long.
SHORT = Patience(connect=2, silence=1, window=1, least=100, attempts=4, budget=10, pause=0.001)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "Patience", lambda: SHORT)
    monkeypatch.setattr(address, "_PROBE_SECONDS", 1)


@pytest.fixture
def place(distribution: OciServer) -> OciPlace:
    return OciPlace(distribution)


@pytest.fixture
def between(distribution: OciServer) -> Iterator[Proxy]:
    with proxy(distribution.base_url) as running:
        yield running


@pytest.fixture
def ref(between: Proxy, place: OciPlace) -> str:
    """The same place, by way of the proxy."""
    return f"oci://{between.registry}/{place.repository.name}"


NOT_NOW = answer(503)
TOO_MANY = answer(429, {"Retry-After": "0"})
UPLOAD, MANIFESTS = r"/blobs/uploads/.+", "/manifests/"


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize(
    ("method", "path", "acts"),
    [
        ("HEAD", "/blobs/", [NOT_NOW, TOO_MANY, lost]),
        ("POST", "/blobs/uploads/", [NOT_NOW, TOO_MANY, lost, applied(500)]),
        ("PUT", UPLOAD, [NOT_NOW]),
        ("PUT", UPLOAD, [TOO_MANY]),
        ("PUT", UPLOAD, [lost]),
        ("PUT", UPLOAD, [applied(500), applied(502), lost]),
        ("PUT", UPLOAD, [answer(404)]),  # the upload has been forgotten
        ("PUT", UPLOAD, [applied(404)]),
        ("PUT", MANIFESTS, [NOT_NOW, TOO_MANY]),
        ("PUT", MANIFESTS, [lost, applied(500)]),
        ("PUT", MANIFESTS, [applied(500)] * 4),  # until nobody tries any more
        ("GET", MANIFESTS, [NOT_NOW, TOO_MANY, lost]),
        ("GET", "/tags/list", [NOT_NOW, TOO_MANY, lost]),
    ],
)
def test_a_push_gets_through(
    between: Proxy,
    ref: str,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    image: str,
    layout: str,
    method: str,
    path: str,
    acts: list[Act],
) -> None:
    between.on(method, path, *acts)
    report = pfimg.push(store, image, ref, layout=layout)
    assert report.sent + report.skipped == len(everything(store, image))
    assert report.retries > 0 or acts == [applied(500)] * 4
    assert pfimg.pull(ref, other).image == image
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize("act", [NOT_NOW, TOO_MANY, lost])
def test_a_pull_gets_through(
    between: Proxy, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str, layout: str, act: Act
) -> None:
    pfimg.push(store, image, ref, layout=layout)

    def cut(peer: Peer, forward: Callable[[], Response]) -> None:
        content = forward().body
        peer.send(
            b"HTTP/1.1 %d Cut\r\nContent-Length: %d\r\n\r\n" % (206 if "range" in peer.asked.headers else 200, len(content))
        )
        peer.send(content[: len(content) // 2])
        peer.close()

    between.on("GET", "/blobs/", act, cut, passed, act)
    report = pfimg.pull(ref, other)
    assert report.retries >= 2
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/blobs/uploads/"), ("PUT", UPLOAD), ("PUT", MANIFESTS)])
def test_a_registry_that_never_recovers_ends_a_push(
    between: Proxy, ref: str, store: pfimg.PfStore, image: str, layout: str, method: str, path: str
) -> None:
    between.always(method, path, answer(500))
    with pytest.raises(pfimg.BackendError, match="500") as caught:
        pfimg.push(store, image, ref, layout=layout)
    assert (caught.value.status, caught.value.retryable) == (500, True)
    assert not pfimg.exists(ref)


def test_what_a_registry_says_is_shown_in_one_line(between: Proxy, ref: str, store: pfimg.PfStore, image: str) -> None:
    errors = {
        "errors": [{"code": "MANIFEST_INVALID", "message": "too\nmany\x1b[31m layers", "detail": "secret"}, {"code": "OTHER"}]
    }
    between.always("PUT", MANIFESTS, answer(400, body=json.dumps(errors).encode()))
    with pytest.raises(pfimg.BackendError) as caught:
        pfimg.push(store, image, ref)
    assert str(caught.value).endswith("/manifests/latest: the registry answered 400 (MANIFEST_INVALID: too many[31m layers)")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errors": 1}', b'{"errors": [1]}', b'{"errors": []}'])
def test_errors_that_are_none_of_the_specification(
    between: Proxy, ref: str, store: pfimg.PfStore, image: str, body: bytes
) -> None:
    between.always("PUT", MANIFESTS, answer(418, body=body))
    with pytest.raises(pfimg.BackendError, match=r"the registry answered 418$"):
        pfimg.push(store, image, ref)


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_a_registry_that_always_lacks_something_is_asked_twice(
    between: Proxy, ref: str, store: pfimg.PfStore, image: str, layout: str
) -> None:
    errors = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry", "detail": "sha256:00"}]}
    between.always("PUT", MANIFESTS, answer(404, body=json.dumps(errors).encode()))
    with pytest.raises(pfimg.BlobNotFound, match="lacks a blob"):
        pfimg.push(store, image, ref, layout=layout)
    assert between.count("PUT", MANIFESTS) == 2


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_what_is_lost_while_a_push_is_under_way_is_sent_again(
    between: Proxy, place: OciPlace, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str, layout: str
) -> None:
    def losing(peer: Peer, forward: Callable[[], Response]) -> None:
        for digest in place.repository.blobs():
            place.repository.delete(digest)
        passed(peer, forward)

    between.on("PUT", MANIFESTS, losing)
    report = pfimg.push(store, image, ref, layout=layout)
    assert (report.sent, report.skipped) == (len(everything(store, image)), 0)
    assert pfimg.pull(ref, other).image == image
    assert everything(other, image) == everything(store, image)


def test_pieces_go_on_after_the_last_that_has_arrived(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, ref: str, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 9 << 20)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 2 << 20)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(10 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")
    # The second arrives, but nobody learns of it; the third does not.
    between.on("PATCH", UPLOAD, passed, lost, NOT_NOW, passed, TOO_MANY)
    report = pfimg.push(store, image, ref)
    assert report.retries == 3
    starts = [asked.headers["content-range"].partition("-")[0] for asked in between.asked if asked.method == "PATCH"]
    assert starts == [str(at << 20) for at in (0, 2, 4, 4, 6, 6, 8, 10)]
    assert pfimg.pull(ref, other).image == image


def test_an_upload_that_was_forgotten_begins_anew(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, ref: str, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 9 << 20)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 4 << 20)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(10 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")
    between.on("PATCH", UPLOAD, passed, answer(404))
    assert pfimg.push(store, image, ref).retries == 1
    assert between.count("PATCH", UPLOAD) == 5
    assert pfimg.pull(ref, other).image == image


def test_what_is_too_large_for_the_registry_goes_in_pieces(
    between: Proxy, ref: str, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(9 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")

    def small_only(peer: Peer, forward: Callable[[], Response]) -> None:
        (passed if len(peer.asked.body) <= 5 << 20 else answer(413))(peer, forward)

    between.always("PUT|PATCH|POST", "/blobs/", small_only)
    pfimg.push(store, image, ref)
    assert between.count("PATCH", UPLOAD) == 2
    assert pfimg.pull(ref, other).image == image


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize(("method", "status"), [("PUT", 413), ("PATCH", 413), ("PATCH", 405), ("PATCH", 400)])
def test_what_a_registry_does_not_take_is_learned_by_many_threads_at_once(
    monkeypatch: pytest.MonkeyPatch,
    between: Proxy,
    ref: str,
    tmp_path: Path,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    method: str,
    status: int,
    layout: str,
) -> None:
    """Sixteen blobs, or packs, of which each is refused before any thread knows of the other refusals."""
    monkeypatch.setattr(repository, "_SMALL_BYTES", 64 << 10)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 128 << 10)
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 1 << 20 if method == "PUT" else 100 << 10)
    monkeypatch.setattr(repository, "_TRIAL_BYTES", 0)
    monkeypatch.setattr(OciTransport, "pack_bytes", 250 << 10)
    (tmp_path / "work").mkdir()
    for at in range(16):
        (tmp_path / "work" / str(at)).write_bytes(random.Random(at).randbytes(250 << 10))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")
    all_at_once = threading.Barrier(16)
    refused: list[Peer] = []

    def refusing(peer: Peer, forward: Callable[[], Response]) -> None:
        if len(peer.asked.body) <= 64 << 10 if status == 413 else len(refused) == 16:
            passed(peer, forward)
            return
        refused.append(peer)
        with suppress(threading.BrokenBarrierError):
            all_at_once.wait(10)
        answer(status)(peer, forward)

    between.always(method, UPLOAD, refusing)
    sent = pfimg.push(store, image, ref, layout=layout, jobs=16)
    assert sent.sent == len(everything(store, image))
    assert sent.retries >= 16
    assert pfimg.pull(ref, other).image == image
    assert everything(other, image) == everything(store, image)


def test_to_learn_what_a_registry_takes_uses_up_no_attempts(
    between: Proxy, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    between.on("PUT", UPLOAD, *[NOT_NOW] * 4, answer(413))
    assert pfimg.push(store, image, ref, jobs=1).retries == 5
    assert pfimg.pull(ref, other).image == image


@pytest.mark.parametrize(("acts", "pieces"), [([answer(405)], 1), ([passed, answer(400)], 2), ([passed, *[answer(416)] * 5], 6)])
def test_a_registry_that_takes_no_pieces_gets_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    between: Proxy,
    ref: str,
    tmp_path: Path,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    acts: list[Act],
    pieces: int,
) -> None:
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 9 << 20)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 4 << 20)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(10 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")
    between.on("PATCH", UPLOAD, *acts)
    pfimg.push(store, image, ref)
    assert between.count("PATCH", UPLOAD) == pieces
    assert max(len(asked.body) for asked in between.asked if asked.method == "PUT") > 10 << 20
    assert pfimg.pull(ref, other).image == image


def test_pieces_are_not_smaller_than_the_registry_wants(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, ref: str, tmp_path: Path, store: pfimg.PfStore
) -> None:
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 9 << 20)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 1 << 20)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(10 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")

    def wanting(peer: Peer, forward: Callable[[], Response]) -> None:
        response = forward()
        response.headers["OCI-Chunk-Min-Length"] = str(6 << 20)
        respond(peer, response)

    between.always("POST", "/blobs/uploads/", wanting)
    pfimg.push(store, image, ref)
    assert between.count("PATCH", UPLOAD) == 2


def test_a_registry_that_takes_a_blob_at_once_is_sent_it_at_once(
    between: Proxy, distribution: OciServer, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    def taking(peer: Peer, forward: Callable[[], Response]) -> None:
        if "?digest=" not in peer.asked.path:
            passed(peer, forward)
            return
        path, _, query = peer.asked.path.partition("?")
        begun = request(f"{distribution.base_url}{path}", "POST", b"")
        respond(peer, request(f"{begun.headers['Location']}&{query}", "PUT", peer.asked.body))

    between.always("POST", "/blobs/uploads/", taking)
    assert pfimg.push(store, image, ref).sent == len(everything(store, image))
    assert between.count("PUT", UPLOAD) == 0
    assert pfimg.pull(ref, other).image == image


@pytest.mark.parametrize("status", [400, 404, 405, 411, 413])
def test_a_registry_that_refuses_that_is_sent_blobs_in_two_requests(
    between: Proxy, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str, status: int
) -> None:
    between.always("POST", r"\?digest=", answer(status))
    assert pfimg.push(store, image, ref, jobs=1).sent == len(everything(store, image))
    assert between.count("POST", r"\?digest=") == 1
    assert pfimg.pull(ref, other).image == image


def test_addresses_for_uploads_may_be_relative(
    between: Proxy, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    def relative(peer: Peer, forward: Callable[[], Response]) -> None:
        response = forward()
        response.headers.replace_header("Location", response.headers["Location"].removeprefix(between.url))
        respond(peer, response)

    between.always("POST", "/blobs/uploads/", relative)
    pfimg.push(store, image, ref)
    assert pfimg.pull(ref, other).image == image


def test_a_registry_that_does_not_say_where_to_send_is_an_error(
    between: Proxy, ref: str, store: pfimg.PfStore, image: str
) -> None:
    between.always("POST", "/blobs/uploads/", answer(202))
    with pytest.raises(pfimg.BackendError, match="no Location"):
        pfimg.push(store, image, ref)


def test_blobs_may_lie_elsewhere(
    between: Proxy, place: OciPlace, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    for layout in ("reference", "packed"):
        pfimg.push(store, image, f"{ref}:{layout}", layout=layout)
    with scripted() as storage:

        def elsewhere(peer: Peer, _forward: Callable[[], Response]) -> None:
            digest = peer.asked.path.rpartition("/")[2]
            content = place.repository.get(digest)
            first, _, last = peer.asked.headers.get("range", "").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1] if last else content
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"} if last else {}
            storage.on(f"/storage/{digest}?signature=x", Answer(206 if last else 200, part, headers))
            answer(307, {"Location": f"{storage.url}/storage/{digest}?signature=x"})(peer, _forward)

        between.always("GET|HEAD", "/blobs/sha256:", elsewhere)
        for layout in ("reference", "packed"):
            assert pfimg.pull(f"{ref}:{layout}", other).image == image
            pfimg.push(store, image, f"{ref}:again", layout=layout)
        assert len(storage.asked) > len(everything(store, image))
    assert everything(other, image) == everything(store, image)


def test_a_registry_without_head_for_manifests(between: Proxy, ref: str, store: pfimg.PfStore, image: str) -> None:
    between.always("HEAD", MANIFESTS, answer(405))
    assert not pfimg.exists(ref)
    pfimg.push(store, image, ref)
    assert pfimg.exists(ref)


@pytest.mark.parametrize(("status", "what"), [(401, "credentials"), (403, "do not allow"), (500, "500"), (400, "400")])
def test_existence_is_denied_only_where_it_is_certain(between: Proxy, ref: str, status: int, what: str) -> None:
    between.always("HEAD", MANIFESTS, answer(status))
    with pytest.raises(pfimg.BackendError, match=what) as caught:
        pfimg.exists(ref)
    assert caught.value.status == status


@pytest.mark.parametrize("tags", [b"{}", b"[]", b"tags", b'{"tags": 1}', b"[" * 100_000])
def test_a_list_of_tags_that_is_none(between: Proxy, ref: str, tags: bytes) -> None:
    between.always("GET", "/tags/list", answer(200, body=tags))
    with pytest.raises(pfimg.FormatError, match="no list of tags"):
        pfimg.list_images(ref)


def test_a_list_of_tags_without_end_comes_to_one(monkeypatch: pytest.MonkeyPatch, between: Proxy, ref: str) -> None:
    monkeypatch.setattr(repository, "_TAG_PAGES", 5)
    between.always("GET", "/tags/list", answer(200, {"Link": '</v2/x/tags/list?last=a>; rel="next"'}, b'{"tags": ["a"]}'))
    assert len(pfimg.list_images(ref)) <= 5


def acts(ref: str, store: pfimg.PfStore, image: str) -> list[Callable[[], Any]]:
    return [
        lambda: pfimg.push(store, image, ref),
        lambda: pfimg.pull(ref, store),
        lambda: pfimg.exists(ref),
        lambda: pfimg.list_images(ref),
    ]


def test_nobody_listens(store: pfimg.PfStore, image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for act in acts(f"oci://127.0.0.1:{port}/a/b", store, image):
        with pytest.raises(pfimg.BackendError, match=rf"127\.0\.0\.1:{port}"):
            act()


def test_somebody_listens_and_says_nothing(store: pfimg.PfStore, image: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        for act in acts(f"oci://127.0.0.1:{port}/a/b", store, image):
            with pytest.raises(pfimg.RegistryTimeout, match=rf"127\.0\.0\.1:{port}"):
                act()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", MANIFESTS), ("POST", "/blobs/uploads/"), ("PUT", UPLOAD), ("PUT", MANIFESTS)]
)
def test_a_registry_that_falls_silent_ends_a_push(
    between: Proxy, ref: str, store: pfimg.PfStore, image: str, method: str, path: str
) -> None:
    between.always(method, path, lambda peer, _forward: peer.silence())
    with pytest.raises(pfimg.RegistryTimeout):
        pfimg.push(store, image, ref, jobs=2)


def test_a_registry_that_falls_silent_ends_a_pull(
    between: Proxy, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    for layout in ("reference", "packed"):
        pfimg.push(store, image, f"{ref}:{layout}", layout=layout)
    between.always("GET", "/blobs/", lambda peer, _forward: peer.silence())
    for layout in ("reference", "packed"):
        with pytest.raises(pfimg.RegistryTimeout):
            pfimg.pull(f"{ref}:{layout}", other, jobs=2)


def test_what_is_no_registry_is_an_error(store: pfimg.PfStore, image: str) -> None:
    with scripted() as server:
        server.otherwise = Answer(200, b"<html>hello</html>")
        ref = f"oci://127.0.0.1:{server.port}/a/b"
        with pytest.raises(pfimg.FormatError, match="malformed"):
            pfimg.pull(ref, store)
        with pytest.raises(pfimg.PfimgError):
            pfimg.push(store, image, ref)
        assert digest_of(b"") not in str(server.asked)
