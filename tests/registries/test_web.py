"""Requests to servers that err in every way a server can."""

from __future__ import annotations

import email.utils
import logging
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.servers import certificates
from tests.servers.scripted import Answer, Peer, Scripted, scripted

import pfimg
from pfimg.registries import web
from pfimg.registries.base import Traffic
from pfimg.registries.connections import Patience
from pfimg.registries.web import WebClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Seconds; what a test waits for in vain, it waits for about so long.
SHORT = Patience(connect=0.5, silence=0.3, window=0.3, least=100, attempts=3, budget=5, pause=0.001)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture
def client(traffic: Traffic) -> Iterator[WebClient]:
    with WebClient(traffic, patience=SHORT) as opened:
        yield opened


def test_a_request_gets_its_answer(client: WebClient, server: Scripted) -> None:
    url = server.on("/x?y=%C3%BC", Answer(201, b"hello", {"X-Thing": "1"}))
    reply = client.request("PUT", url, headers={"Content-Type": "text/plain"}, content=b"body", accept=(201,))
    assert (reply.status, reply.content, reply.headers["x-thing"], reply.url) == (201, b"hello", "1", url)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("PUT", "/x?y=%C3%BC", b"body")
    assert asked.headers["content-type"] == "text/plain"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"


def test_bodies_are_buffers_or_files_and_are_sent_again(
    client: WebClient, server: Scripted, traffic: Traffic, tmp_path: Path
) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    url = server.on("/x", Answer(503), Answer(), Answer(503), Answer())
    for body in (memoryview(content).cast("I"), tmp_path / "file"):
        client.request("PUT", url, content=body)
    assert [asked.body == content for asked in server.asked] == [True] * 4
    assert all(asked.headers["content-length"] == "300000" for asked in server.asked)
    assert traffic.retries == 2


def test_connections_are_used_again_even_after_answers_that_nobody_wanted(client: WebClient, server: Scripted) -> None:
    url = server.on("/x", Answer(body=b"yes"), Answer(404, b"no"), Answer(503, b"not now"), Answer(body=bytes(1 << 20)))
    client.request("GET", url)
    assert client.request("GET", url, accept=(200, 404)).status == 404
    client.request("GET", url)
    client.request("HEAD", url)
    client.request("GET", url)
    assert len(server.asked) == 6
    assert len({asked.address for asked in server.asked}) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for(client: WebClient, server: Scripted, traffic: Traffic, status: int) -> None:
    url = server.on("/x", Answer(status), Answer(status), Answer(body=b"now"))
    assert client.request("GET", url).content == b"now"
    assert traffic.retries == 2
    url = server.on("/y", Answer(status))
    with pytest.raises(pfimg.BackendError, match=f"{url}: the server answered {status} ") as caught:
        client.request("GET", url)
    assert (caught.value.status, caught.value.retryable) == (status, True)
    assert len(server.asked) == 3 + SHORT.attempts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501, 204, 304, 418, 599])
def test_what_does_not_pass_is_told_at_once(client: WebClient, server: Scripted, status: int) -> None:
    url = server.on("/x", Answer(status))
    with pytest.raises(pfimg.BackendError, match=f"{url}: the server answered {status}") as caught:
        client.request("GET", url)
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_not_be_done_twice_is_repeated_only_where_it_was_not_begun(
    client: WebClient, server: Scripted, method: str
) -> None:
    url = server.on("/x", Answer(429), Answer(202))
    assert client.request(method, url, content=b"x", accept=(202,)).status == 202
    url = server.on("/y", Answer(503), Answer(202))
    with pytest.raises(pfimg.BackendError, match="503") as caught:
        client.request(method, url, content=b"x", accept=(202,))
    assert caught.value.retryable
    url = server.on("/z", lambda peer: peer.close(), Answer(202))
    with pytest.raises(pfimg.BackendError, match="broke off"):
        client.request(method, url, content=b"x", accept=(202,))
    assert client.request(method, url, content=b"x", accept=(202,), repeatable=True).status == 202
    assert [asked.path for asked in server.asked] == ["/x", "/x", "/y", "/z", "/z"]


def test_a_server_says_when(server: Scripted, traffic: Traffic) -> None:
    def later(after: str) -> Answer:
        return Answer(503, headers={"Retry-After": after})

    when = email.utils.formatdate(time.time() + 2, usegmt=True)
    url = server.on("/x", later("1"), later(when), later("soon"), Answer(body=b"now"))
    with WebClient(traffic, patience=Patience(attempts=5, pause=0.001)) as client:
        assert client.request("GET", url).content == b"now"
        assert server.asked[1].when - server.asked[0].when >= 1
        assert server.asked[2].when >= email.utils.parsedate_to_datetime(when).timestamp()
        assert traffic.retries == 3
        # Nobody waits longer than the budget.
        url = server.on("/y", later("100000"))
        with pytest.raises(pfimg.BackendError, match=r"503 Service Unavailable: try again in 100,000 seconds"):
            client.request("GET", url)
    assert len(server.asked) == 5


def silent(peer: Peer) -> None:
    peer.silence()


def silent_in_the_body(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    peer.silence()


def dripping_headers(peer: Peer) -> None:
    peer.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000, 0.02)
    peer.close()


def dripping_body(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    peer.drip(b"x" * 1000, 0.02)
    peer.close()


def dripping_chunk_size(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;padding=")
    peer.drip(b"x" * 1000, 0.02)
    peer.close()


@pytest.mark.parametrize("script", [silent, silent_in_the_body, dripping_headers, dripping_body, dripping_chunk_size])
def test_nobody_is_waited_for_without_end(
    client: WebClient, server: Scripted, traffic: Traffic, tmp_path: Path, script: Callable[[Peer], None]
) -> None:
    url = server.on("/x", script)
    for act in (
        lambda: client.request("GET", url),
        lambda: client.fetch(url, tmp_path / "x", large=0, limit=10_000),
        lambda: client.fetch_range(url, 0, 100),
    ):
        traffic.retries = 0
        with pytest.raises(pfimg.RegistryTimeout, match=url) as caught:
            act()
        assert caught.value.retryable
        assert traffic.retries == SHORT.attempts - 1


def test_who_takes_nothing_is_not_waited_for(client: WebClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it never reads
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        with pytest.raises(pfimg.RegistryTimeout, match=url):
            client.request("PUT", url, content=bytes(64 << 20))


def test_slow_is_not_silent(server: Scripted, traffic: Traffic) -> None:
    """What comes steadily may take many times as long as any deadline."""

    def steady(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")
        peer.drip(b"x" * 60, 0.02)

    url = server.on("/x", steady)
    with WebClient(traffic, patience=Patience(silence=0.5, window=0.1, least=1)) as client:
        assert client.request("GET", url).content == b"x" * 60
    assert traffic.retries == 0


def test_who_cannot_be_reached(client: WebClient, traffic: Traffic) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    with pytest.raises(pfimg.BackendError, match=f"{url}: no connection: connection refused") as caught:
        client.request("GET", url)
    assert (caught.value.status, caught.value.retryable, traffic.retries) == (None, True, SHORT.attempts - 1)
    with pytest.raises(pfimg.BackendError, match="the name of the host is not known"):
        client.request("GET", "http://no-such-host.invalid/x")


def content(fetched: bytes | Path | None) -> bytes | None:
    return fetched.read_bytes() if isinstance(fetched, pathlib.Path) else fetched


def test_a_connection_that_is_not_accepted(client: WebClient, traffic: Traffic) -> None:
    """The system answers for a server that is slow to accept, until its queue is full; then nobody does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        with pytest.raises(pfimg.RegistryTimeout, match=f"{url}: no connection in 0.5 seconds"):
            client.request("POST", url)
    assert traffic.retries == SHORT.attempts - 1


def test_a_body_is_cut_short(client: WebClient, server: Scripted, traffic: Traffic, tmp_path: Path) -> None:
    cut = Answer(body=b"x" * 50, headers={"Content-Length": "100"})
    whole = Answer(body=b"y" * 100)
    acts: list[Callable[[str], object]] = [
        lambda url: client.request("GET", url).content,
        lambda url: content(client.fetch(url, tmp_path / "x", large=100, limit=1000)),
        lambda url: content(client.fetch(url, tmp_path / "x", large=10, limit=1000)),
        lambda url: client.fetch_range(url, 0, 100),
    ]
    for act in acts:
        traffic.retries = 0
        assert act(server.on("/x", cut, cut, whole)) == b"y" * 100
        assert traffic.retries == 2
        with pytest.raises(pfimg.BackendError, match=r"broke off: .*50 bytes, expected 100"):
            act(server.on("/x", cut))


@pytest.mark.parametrize("large", [0, 1000])
@pytest.mark.parametrize("length", [99, 101])
@pytest.mark.parametrize("headers", [{}, {"Content-Length": "", "Connection": "close"}], ids=["declared", "undeclared"])
def test_a_body_of_another_length_than_it_must_have(
    client: WebClient, server: Scripted, traffic: Traffic, tmp_path: Path, large: int, length: int, headers: dict[str, str]
) -> None:
    wrong = Answer(body=b"x" * length, headers=headers)
    url = server.on("/x", wrong, Answer(body=b"y" * 100))
    assert content(client.fetch(url, tmp_path / "x", large=large, limit=1000, size=100)) == b"y" * 100
    assert traffic.retries == 1
    url = server.on("/x", wrong)
    with pytest.raises(pfimg.BackendError, match=f"is {length} bytes long where 100 were announced"):
        client.fetch(url, tmp_path / "x", large=large, limit=1000, size=100)


def test_a_body_that_is_too_large(client: WebClient, server: Scripted, traffic: Traffic, tmp_path: Path) -> None:
    def endless(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(bytes(1 << 16))

    declared = Answer(body=b"x", headers={"Content-Length": str(1 << 40)})
    for url in (server.on("/x", declared), server.on("/y", endless)):
        with pytest.raises(pfimg.LimitExceeded, match=f"{url} is larger than 100 bytes") as caught:
            client.request("GET", url, limit=100)
        assert caught.value.limit == 100
        with pytest.raises(pfimg.LimitExceeded, match=f"{url} is larger than 100,000 bytes"):
            client.fetch(url, tmp_path / "x", large=1000, limit=100_000)
    assert traffic.retries == 0


def test_small_bodies_are_in_memory_and_large_ones_in_a_file(client: WebClient, server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "x"
    url = server.on("/x", Answer(body=b"x" * 100_000))
    assert client.fetch(url, path, large=100_000, limit=100_000) == b"x" * 100_000
    assert not path.exists()
    assert client.fetch(url, path, large=99_999, limit=100_000) == path
    assert path.read_bytes() == b"x" * 100_000
    assert client.fetch(server.url + "/none", path, large=0, limit=0) is None


def test_a_large_body_goes_on_where_it_broke_off(client: WebClient, server: Scripted, tmp_path: Path) -> None:
    """More often than attempts are allowed, because each gets further."""
    body = os.urandom(1_000_000)
    tag = {"ETag": '"1"'}

    def some(peer: Peer) -> None:
        start = int(peer.asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = tag | {"Content-Length": str(len(body) - start)}
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        Answer(206 if start else 200, body[start : start + 100_000], headers | span)(peer)
        if start + 100_000 < len(body):
            peer.close()

    url = server.on("/x", some)
    assert content(client.fetch(url, tmp_path / "x", large=1000, limit=len(body), size=len(body))) == body
    assert len(server.asked) == 10
    assert [asked.headers.get("if-range") for asked in server.asked] == [None] + ['"1"'] * 9


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_a_large_body_begins_anew_where_nothing_tells_that_it_is_the_same(
    client: WebClient, server: Scripted, tmp_path: Path, tag: str
) -> None:
    cut = Answer(body=b"x" * 5000, headers={"Content-Length": "10000", "ETag": tag})
    url = server.on("/x", cut, Answer(body=b"y" * 10_000))
    assert content(client.fetch(url, tmp_path / "x", large=1000, limit=10_000)) == b"y" * 10_000
    assert ["range" in asked.headers for asked in server.asked] == [False, False]


def test_a_large_body_that_has_changed_begins_anew(client: WebClient, server: Scripted, tmp_path: Path) -> None:
    cut = Answer(body=b"x" * 5000, headers={"Content-Length": "10000", "ETag": '"1"'})
    url = server.on("/x", cut, Answer(body=b"y" * 9000, headers={"ETag": '"2"'}))
    assert content(client.fetch(url, tmp_path / "x", large=1000, limit=10_000)) == b"y" * 9000
    assert server.asked[1].headers["range"] == "bytes=5000-"
    # A piece that does not follow is refused.
    wrong = Answer(206, b"y" * 10, headers={"Content-Range": "bytes 4990-4999/10000"})
    url = server.on("/y", lambda peer: (wrong if "range" in peer.asked.headers else cut)(peer))
    with pytest.raises(pfimg.BackendError, match="another range"):
        client.fetch(url, tmp_path / "y", large=1000, limit=10_000)


def test_requests_under_way_can_be_stopped(server: Scripted, traffic: Traffic) -> None:
    """Those that wait for an answer, and those that wait to be made again; the client can be used again."""
    begun = threading.Barrier(3)
    done: list[BaseException | None] = []

    def silent_once_all_are_here(peer: Peer) -> None:
        begun.wait()
        peer.silence()

    def later(peer: Peer) -> None:
        Answer(503, headers={"Retry-After": "1000"})(peer)
        begun.wait()

    urls = [server.on("/silent", silent_once_all_are_here), server.on("/later", later)]
    with WebClient(traffic, patience=Patience(silence=1000, window=1000, budget=10_000)) as client:

        def run(url: str) -> None:
            try:
                client.request("GET", url)
            except pfimg.BackendError as error:
                done.append(error)

        threads = [threading.Thread(target=run, args=[url]) for url in urls]
        for thread in threads:
            thread.start()
        begun.wait()
        while any(thread.is_alive() for thread in threads):
            client.stop()
            threads[0].join(0.05)
        assert len(done) == 2
        assert client.request("GET", server.on("/x", Answer(body=b"x"))).content == b"x"


def test_what_is_encoded_for_the_way_is_refused(client: WebClient, server: Scripted, tmp_path: Path) -> None:
    url = server.on("/x", Answer(body=b"x", headers={"Content-Encoding": "gzip"}))
    for act in (lambda: client.request("GET", url), lambda: client.fetch(url, tmp_path / "x", large=10, limit=10)):
        with pytest.raises(pfimg.BackendError, match=f"{url} comes with the content encoding 'gzip'"):
            act()


def ranges(content: bytes) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        first, last = (int(text) for text in peer.asked.headers["range"].removeprefix("bytes=").split("-"))
        last = min(last, len(content) - 1)
        if first > last:
            Answer(416, headers={"Content-Range": f"bytes */{len(content)}"})(peer)
        else:
            span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            Answer(206, content[first : last + 1], span)(peer)

    return answer


def test_ranges(client: WebClient, server: Scripted) -> None:
    content = os.urandom(200_000)
    for url in (server.on("/x", ranges(content)), server.on("/y", Answer(body=content))):  # the latter takes no ranges
        for offset, length in ((0, 1), (0, 200_000), (99_999, 2), (199_999, 1), (65_530, 70_000)):
            assert client.fetch_range(url, offset, length) == content[offset : offset + length]
        for offset, length in ((199_999, 2), (200_000, 1), (300_000, 5)):
            with pytest.raises(pfimg.BackendError, match=f"{url} ends before byte {offset + length:,}"):
                client.fetch_range(url, offset, length)
    assert client.fetch_range(server.url + "/none", 0, 1) is None


def test_parts_are_cut_out_of_one_answer(client: WebClient, server: Scripted, traffic: Traffic) -> None:
    content = os.urandom(200_000)
    parts = [(0, 10), (10, 5), (70_000, 1), (99_990, 100_000), (199_999, 1)]
    expected = [content[offset : offset + length] for offset, length in parts]
    cut = Answer(body=content[:150_000], headers={"Content-Length": "200000"})
    for script, ranged in ((ranges(content), True), (Answer(body=content), False)):
        found: dict[int, bytes] = {}
        url = server.on("/x", cut, script)
        assert client.fetch_parts(url, parts, found.__setitem__) is ranged
        assert list(found.values()) == expected
    assert traffic.retries == 2
    # What has been delivered is not asked for again.
    assert [asked.headers["range"] for asked in server.asked] == ["bytes=0-199999", "bytes=99990-199999"] * 2


def test_of_a_body_without_ranges_no_more_is_read_than_needed(client: WebClient, server: Scripted) -> None:
    def endless(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(bytes(1 << 16))

    assert client.fetch_range(server.on("/x", endless), 100_000, 10) == bytes(10)


@pytest.mark.parametrize("span", ["bytes 1-10/100", "bytes 0-10/100", "bytes 0-9", "0-9/100", "", "items 0-9/100"])
def test_another_range_than_was_asked_for_is_refused(client: WebClient, server: Scripted, span: str) -> None:
    url = server.on("/x", Answer(206, b"x" * 10, {"Content-Range": span}))
    with pytest.raises(pfimg.BackendError, match="another range than bytes 0 to 10"):
        client.fetch_range(url, 0, 10)


def test_redirects_are_followed_so_far(client: WebClient, server: Scripted) -> None:
    url = server.on("/1", Answer(302, headers={"Location": "2"}))
    server.on("/2", Answer(307, headers={"Location": f"{server.url}/3?sig=1"}))
    server.on("/3?sig=1", Answer(body=b"here"))
    reply = client.request("GET", url)
    assert (reply.content, reply.url) == (b"here", f"{server.url}/3?sig=1")
    url = server.on("/loop", Answer(302, headers={"Location": "/loop"}))
    with pytest.raises(pfimg.BackendError, match=f"{url} redirects more than 5 times"):
        client.request("GET", url)
    url = server.on("/nowhere", Answer(302))
    with pytest.raises(pfimg.BackendError, match="302"):
        client.request("GET", url)


def test_what_writes_is_redirected_only_as_it_is(client: WebClient, server: Scripted) -> None:
    url = server.on("/1", Answer(307, headers={"Location": "/2"}))
    server.on("/2", Answer(201))
    assert client.request("PUT", url, content=b"body", accept=(201,)).status == 201
    assert [asked.body for asked in server.asked] == [b"body", b"body"]
    url = server.on("/1", Answer(302, headers={"Location": "/2"}))
    with pytest.raises(pfimg.BackendError, match="302"):
        client.request("PUT", url, content=b"body", accept=(201,))


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[bad", "http://"])
def test_redirects_that_lead_to_no_web_server(client: WebClient, server: Scripted, place: str) -> None:
    url = server.on("/1", Answer(302, headers={"Location": place}))
    with pytest.raises(pfimg.BackendError):
        client.request("GET", url)


def test_credentials_stay_with_the_server_that_they_are_for(traffic: Traffic) -> None:
    with scripted() as one, scripted() as two:
        own = {one.port: "Bearer one", two.port: None}
        one.on("/x", Answer(302, headers={"Location": f"{two.url}/y"}))
        one.on("/z", Answer(302, headers={"Location": "/w"}))
        one.on("/w", Answer())
        two.on("/y", Answer())
        with WebClient(traffic, patience=SHORT, credentials=lambda _, port: own[port]) as client:
            client.request("GET", f"{one.url}/x", headers={"X-Api-Key": "secret", "Range": "bytes=0-1"}, accept=(200, 206))
            client.request("GET", f"{one.url}/x", headers={"Authorization": "Bearer given", "Cookie": "a=b"})
            client.request("GET", f"{one.url}/z", headers={"Authorization": "Bearer given"})
        assert [asked.headers.get("authorization") for asked in one.asked] == ["Bearer one"] + ["Bearer given"] * 3
        assert [{"authorization", "cookie", "x-api-key"} & asked.headers.keys() for asked in two.asked] == [set(), set()]
        assert two.asked[0].headers["range"] == "bytes=0-1"


def test_credentials_do_not_leave_the_machine_unencrypted(
    client: WebClient, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its other name this machine is another one, and behind a proxy so is everything."""
    url = server.on("/x", Answer(401))
    with pytest.raises(pfimg.BackendError, match=r"401 Unauthorized$"):
        client.request("GET", url, headers={"Authorization": "Bearer secret"})
    assert "authorization" in server.asked[-1].headers
    monkeypatch.setenv("http_proxy", server.url)
    server.on("http://example.org/x", Answer(401))
    with pytest.raises(pfimg.BackendError, match=r"401 Unauthorized: credentials are not sent over plain http: use https"):
        client.request("GET", "http://example.org/x", headers={"Authorization": "Bearer secret"})
    assert "authorization" not in server.asked[-1].headers


@pytest.mark.parametrize("token", ["SECRET\n", "SECRET\r\nX: y", "SECRETü", "\x00"])
def test_a_token_that_cannot_be_sent(client: WebClient, server: Scripted, token: str) -> None:
    with pytest.raises(pfimg.BackendError, match="has characters that do not belong there") as caught:
        client.request("GET", f"{server.url}/x", headers={"Authorization": f"Bearer {token}"})
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert server.asked == []


def test_a_server_that_sets_cookies_gets_none(client: WebClient, server: Scripted) -> None:
    url = server.on("/x", Answer(headers={"Set-Cookie": "tracked=1; Path=/"}))
    client.request("GET", url)
    client.request("GET", url)
    assert [asked.headers.get("cookie") for asked in server.asked] == [None, None]


def test_nothing_secret_is_shown(
    client: WebClient, server: Scripted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    server.on("/x?sig=SECRET", Answer(403), Answer(503))
    server.on("/r", Answer(302, headers={"Location": f"http://SECRET:SECRET@127.0.0.1:{server.port}/x?sig=SECRET#SECRET"}))
    monkeypatch.setenv("https_proxy", "http://SECRET:SECRET@127.0.0.1:1")
    shown = []
    for url in (f"{server.url}/x?sig=SECRET", f"{server.url}/r", "https://example.org/?SECRET"):
        with pytest.raises(pfimg.BackendError) as caught:
            client.request("GET", url, headers={"Authorization": "Bearer SECRET"})
        shown.append(str(caught.value))
    assert not [text for text in [*shown, repr(client), caplog.text] if "SECRET" in text]
    logging.getLogger("httpx").info("others may log")
    assert "others may log" in caplog.text


def test_proxies(server: Scripted, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://user:p%40ss@"))
    monkeypatch.setenv("no_proxy", "direct.invalid")
    server.on("http://example.org/x", Answer(body=b"by proxy"))
    with WebClient(traffic, patience=SHORT) as client:
        assert client.request("GET", "http://example.org/x").content == b"by proxy"
        assert server.asked[-1].headers["proxy-authorization"] == web.basic("user", "p@ss")
        with pytest.raises(pfimg.BackendError, match="name of the host is not known"):
            client.request("GET", "http://direct.invalid/x")
    monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
    with (
        WebClient(traffic, patience=SHORT) as client,
        pytest.raises(pfimg.RegistryError, match=r"proxy socks5://127\.0\.0\.1:1: "),
    ):
        client.request("GET", "http://example.org/x")


def test_by_a_proxy_to_a_server_with_tls(
    server: Scripted, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.make(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    monkeypatch.setenv("https_proxy", server.url.replace("http://", "http://user:password@"))
    with scripted(context) as there, WebClient(traffic, patience=SHORT, ca=files.ca) as client:
        server.on(f"127.0.0.1:{there.port}", lambda peer: peer.tunnel(there.port))
        there.on("/x", Answer(body=b"by a tunnel"))
        assert client.request("GET", f"{there.url}/x", headers={"Authorization": "Bearer secret"}).content == b"by a tunnel"
        assert there.asked[0].headers["authorization"] == "Bearer secret"
        assert "proxy-authorization" not in there.asked[0].headers
        (asked,) = server.asked
        assert (asked.method, asked.headers.get("authorization")) == ("CONNECT", None)
        assert asked.headers["proxy-authorization"] == web.basic("user", "password")
        server.on(f"127.0.0.1:{there.port}", Answer(407))
        client.close()
        with pytest.raises(pfimg.BackendError, match="the proxy refuses"):
            client.request("GET", f"{there.url}/x")


def test_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert web.netrc_authorization("example.org") is None
    path = tmp_path / ".netrc"
    path.write_text("machine example.org login user password p:ss\ndefault login anyone password secret\n")
    path.chmod(0o600)
    assert web.netrc_authorization("example.org") == "Basic dXNlcjpwOnNz"
    assert web.netrc_authorization("example.com") is None
    path.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert web.netrc_authorization("example.org") == "Basic dXNlcjpwOnNz"
    (tmp_path / "elsewhere").write_text("machine example.org\nlogin user\npassward secret\n")
    with pytest.raises(pfimg.FormatError, match=r"elsewhere, line 3: ") as caught:
        web.netrc_authorization("example.org")
    assert "secret" not in str(caught.value)


SHOW = "import atexit, sys; atexit.register(lambda: print({'httpx', 'httpcore', 'tenacity'} & set(sys.modules)))"


@pytest.mark.parametrize("command", ["import pfimg", "import pfimg.cli; pfimg.cli.main(['ls'])"])
def test_what_is_not_needed_is_not_imported(command: str, tmp_path: Path) -> None:
    environment = os.environ | {"PF_STORE": str(tmp_path / "store")}
    code = f"{SHOW}\n{command}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "set()"
