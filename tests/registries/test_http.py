"""What is special about web servers: who may read, what they send instead, and what they cannot do."""

from __future__ import annotations

import dataclasses
import gzip
import os
import signal
import socket
import ssl
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.test_contract import assert_nothing_is_visible, everything
from tests.servers import certificates
from tests.servers.scripted import Answer, Peer, Scripted, scripted

import pfimg
from pfimg.registries import HttpRegistry, HttpTransport
from pfimg.registries.base import blob_name
from pfimg.signing import PUBLIC_KEY, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers.fixtures import ServeDirectory


@pytest.fixture
def pushed(root: Path, store: pfimg.PfStore, image: str) -> str:
    """An image in the directory."""
    pfimg.push(store, image, f"file://{root}")
    return image


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


def show(server: Scripted, root: Path) -> str:
    """Lets a scripted server show a directory."""
    for path in root.rglob("*"):
        if path.is_file():
            server.on(f"/tree/{path.relative_to(root)}", Answer(body=path.read_bytes()))
    return f"{server.url}/tree"


def test_what_writes_is_refused_before_anything_is_read(server: Scripted, store: pfimg.PfStore, image: str) -> None:
    ref = f"{server.url}/x"
    acts: list[Callable[[], object]] = [
        lambda: pfimg.push(store, image, ref),
        lambda: pfimg.push(store, "sha256:" + "0" * 64, ref),  # which is not there
        lambda: HttpRegistry().push(ref, store.get_manifest(image), store),
        lambda: pfimg.copy("file:///no/such/directory", ref),
    ]
    for act in acts:
        with pytest.raises(pfimg.RegistryError, match=f"{ref} is read-only: push to the directory or bucket") as caught:
            act()
        assert caught.value.code == "not_offered"
    assert server.asked == []


def test_a_transport_refuses_what_writes(server: Scripted) -> None:
    ref = pfimg.ImageRef.parse(server.url)
    assert isinstance(ref, pfimg.HttpRef)
    transport = HttpTransport(ref)
    acts: list[Callable[[], object]] = [
        lambda: transport.send([]),
        lambda: transport.send_packs([]),
        lambda: transport.publish(ref, b"", b""),
        lambda: transport.describe("names"),
    ]
    for act in acts:
        with pytest.raises(pfimg.RegistryError, match="read-only"):
            act()
    assert {asked.method for asked in server.asked} == {"GET"}


def test_basic_auth_by_netrc(
    nginx: ServeDirectory, root: Path, tmp_path: Path, pushed: str, other: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = nginx(root, auth=True)
    with pytest.raises(pfimg.BackendError, match=r"401 Unauthorized: put a token into PFIMG_HTTP_TOKEN, .* ~/\.netrc") as caught:
        pfimg.pull(server.url, other)
    assert (caught.value.status, caught.value.retryable) == (401, False)
    with pytest.raises(pfimg.BackendError, match="401"):
        pfimg.exists(server.url)
    (tmp_path / "netrc").write_text(f'machine 127.0.0.1 login {server.user} password "{server.password}"\n')
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert pfimg.exists(server.url)
    assert pfimg.pull(server.url, other).image == pushed


def test_a_token_is_for_the_server_that_the_reference_names(
    root: Path, pushed: str, other: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted() as front, scripted() as store:
        elsewhere = show(store, root)
        for path in root.rglob("*"):
            name = path.relative_to(root)
            front.on(f"/{name}", Answer(307, headers={"Location": f"{elsewhere}/{name}?signature=1"}))
            store.on(f"/tree/{name}?signature=1", Answer(body=path.read_bytes() if path.is_file() else b""))
        monkeypatch.setenv("PFIMG_HTTP_TOKEN", "env")
        assert pfimg.pull(front.url, other).image == pushed
        front_tokens = {asked.headers.get("authorization") for asked in front.asked}
        assert HttpRegistry(token="given").exists(front.url)
        assert (front_tokens, front.asked[-1].headers["authorization"]) == ({"Bearer env"}, "Bearer given")
        assert {asked.headers.get("authorization") for asked in store.asked} == {None}


def test_tls_with_an_authority_of_ones_own(
    nginx: ServeDirectory, root: Path, pushed: str, other: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = nginx(root, tls=True)
    with pytest.raises(pfimg.BackendError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
        pfimg.exists(server.url)
    assert server.ca is not None
    assert HttpRegistry(ca=server.ca).pull(server.url, other).image == pushed
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))
    assert pfimg.exists(server.url)
    with pytest.raises(pfimg.FormatError, match="is not a file of certificates"):
        HttpRegistry(ca=root / "manifest.json").exists(server.url)


def test_from_tls_nobody_is_led_to_plain_http(tmp_path: Path, server: Scripted) -> None:
    files = certificates.make(tmp_path)
    with scripted(tls(files)) as safe:
        url = safe.on("/manifest.json", Answer(302, headers={"Location": server.on("/manifest.json", Answer())}))
        with pytest.raises(pfimg.BackendError, match=f"{url} redirects to {server.url}/manifest.json, which is not safe"):
            HttpRegistry(ca=files.ca).exists(safe.url)
    assert server.asked == []


def tls(files: certificates.Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    return context


@pytest.mark.parametrize("name", ["a b", "ü", "100%", "a+b&c=d", "what;'s", "[x]", 'quo"te'])
def test_paths_are_escaped(
    web_server: Callable[[Path], str], tmp_path: Path, store: pfimg.PfStore, image: str, name: str
) -> None:
    pfimg.push(store, image, f"file://{tmp_path}/{name}")
    above = pfimg.ImageRef.parse(web_server(tmp_path))
    assert isinstance(above, pfimg.HttpRef)
    assert pfimg.exists(dataclasses.replace(above, path=f"{above.path}/{name}"))


def test_escapes_in_a_reference_stay(web_server: Callable[[Path], str], tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, f"file://{tmp_path}/a b")
    assert pfimg.exists(f"{web_server(tmp_path)}/a%20b")


def test_an_image_in_packs(
    nginx: ServeDirectory, root: Path, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=40)
    pfimg.push(store, image, f"file://{root}", layout="packed")
    server = nginx(root)
    assert pfimg.exists(server.url)
    pfimg.pull(server.url, other, layers=["cache"], ixs=[30])
    k, _ = other.get_pages(image, ixs=[30])
    assert bytes(k) == bytes(store.get_pages(image, ixs=[30])[0])
    assert pfimg.pull(server.url, other).image == image
    assert everything(other, image) == everything(store, image)
    asked = [line for line in server.requests() if ".pack" in line]
    assert asked
    assert all(" 206 " in line for line in asked)
    # What is lost is found in packs too.
    digest = store.get_manifest(image).world.env
    path = other.blob_path(digest)
    assert path is not None
    path.unlink()
    assert other.verify(repair_from=server.url).repaired == (digest,)
    # A pack is believed only as far as its blobs hash to their names.
    (pack,) = (root / "packs").glob("*.pack")
    pack.write_bytes(bytes(byte ^ 1 for byte in pack.read_bytes()))
    third = pfimg.PfStore.open(tmp_path / "third")
    with pytest.raises(pfimg.IntegrityError):
        pfimg.pull(server.url, third)
    assert_nothing_is_visible(third)
    pack.unlink()
    with pytest.raises(pfimg.BlobNotFound):
        pfimg.pull(server.url, third)


def test_packs_of_a_server_that_takes_no_ranges(
    root: Path, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str], tmp_path: Path
) -> None:
    """Python's own, which knows neither ranges nor conditions; it must not be asked for a pack again and again."""
    images = [make_image(version, pages=40) for version in range(2)]
    pfimg.push(store, images[0], f"file://{root}", layout="packed")
    pfimg.push(store, images[1], f"file://{root}", layout="packed")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(root))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            assert pfimg.pull(url, other).image == images[1]
            packs = len(list((root / "packs").glob("*.pack")))
            assert packs == 2
            # One look at whether it takes ranges, then the documents and the pages.
            assert len([path for path in asked if path.endswith(".pack")]) <= 1 + 2 * packs
            assert everything(other, images[1]) == everything(store, images[1])
            partial = pfimg.PfStore.open(tmp_path / "partial")
            pfimg.pull(url, partial, layers=["cache"], ixs=[7, 39])
            assert bytes(partial.get_pages(images[1], ixs=[39])[0]) == bytes(store.get_pages(images[1], ixs=[39])[0])
        finally:
            server.shutdown()
            thread.join()


def test_existence_is_asked_for_by_head_or_by_a_byte(server: Scripted) -> None:
    def no_head(status: int, then: Answer) -> Callable[[Peer], None]:
        return lambda peer: (Answer(status) if peer.asked.method == "HEAD" else then)(peer)

    for status in (405, 501):
        server.on("/yes/manifest.json", no_head(status, Answer(206, b"{", {"Content-Range": "bytes 0-0/9"})))
        server.on("/no/manifest.json", no_head(status, Answer(404)))
        server.on("/forbidden/manifest.json", no_head(status, Answer(403)))
        assert pfimg.exists(f"{server.url}/yes")
        assert server.asked[-1].headers["range"] == "bytes=0-0"
        assert not pfimg.exists(f"{server.url}/no")
        with pytest.raises(pfimg.BackendError, match="403 Forbidden"):
            pfimg.exists(f"{server.url}/forbidden")


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False), (410, False)])
def test_only_what_the_server_says_is_absent_is_absent(server: Scripted, status: int, there: bool) -> None:
    server.on("/manifest.json", Answer(status))
    assert pfimg.exists(server.url) is there


@pytest.mark.parametrize("status", [400, 401, 403, 451, 500, 503])
def test_a_server_that_does_not_tell_whether_there_is_an_image(server: Scripted, status: int) -> None:
    server.on("/manifest.json", Answer(status))
    with pytest.raises(pfimg.BackendError) as caught:
        HttpRegistry(attempts=2).exists(server.url)
    assert caught.value.status == status


def test_an_object_store_that_forbids_what_is_not_there(server: Scripted, root: Path, pushed: str, other: pfimg.PfStore) -> None:
    url = show(server, root)
    server.on("/tree/pfimg.json", Answer(403))
    assert pfimg.pull(url, other).image == pushed
    server.on("/tree/manifest.json", Answer(403))
    with pytest.raises(pfimg.BackendError, match=r"403 Forbidden: .* or it is not there"):
        pfimg.pull(url, other)


PAGE = b"<!DOCTYPE html><title>Index of /</title><a href='manifest.json'>manifest.json</a>"


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("pfimg.json", pfimg.FormatError),
        ("manifest.json", pfimg.SignatureError),
        ("manifest.json.sig", pfimg.SignatureError),
        ("blob", pfimg.IntegrityError),
    ],
)
def test_a_page_instead_of_what_was_asked_for(
    server: Scripted, root: Path, other: pfimg.PfStore, name: str, error: type[Exception]
) -> None:
    url = show(server, root)
    name = blob_name(other_blob(root)) if name == "blob" else name
    server.on(f"/tree/{name}", Answer(body=PAGE, headers={"Content-Type": "text/html"}))
    with pytest.raises(error):
        pfimg.pull(url, other)
    assert_nothing_is_visible(other)


def other_blob(root: Path) -> str:
    return f"sha256:{max(path.stem for path in root.glob('blobs/sha256/*/*'))}"


def test_a_server_that_answers_everything_with_a_page(server: Scripted, other: pfimg.PfStore) -> None:
    for name in ("pfimg.json", "manifest.json", "manifest.json.sig"):
        server.on(f"/{name}", Answer(body=PAGE))
    with pytest.raises(pfimg.FormatError, match="description"):
        pfimg.pull(server.url, other)
    assert_nothing_is_visible(other)


def test_a_server_that_needs_several_attempts(server: Scripted, root: Path, pushed: str, other: pfimg.PfStore) -> None:
    url = show(server, root)
    name = f"/tree/{blob_name(other_blob(root))}"
    frame = (root / blob_name(other_blob(root))).read_bytes()
    server.on(
        name,
        Answer(503, headers={"Retry-After": "0"}),
        Answer(500),
        Answer(body=frame[:-1], headers={"Content-Length": str(len(frame))}),
        lambda peer: peer.close(),
        Answer(body=frame),
    )
    report = pfimg.pull(url, other)
    assert (report.image, report.retries) == (pushed, 4)


@pytest.mark.parametrize(
    "script",
    [
        Answer(403),
        Answer(500),
        Answer(body=b"short", headers={"Content-Length": "100"}),
        Answer(body=gzip.compress(b"x"), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["forbidden", "broken", "cut", "encoded"],
)
def test_a_blob_that_cannot_be_had(server: Scripted, root: Path, pushed: str, other: pfimg.PfStore, script: Answer) -> None:
    url = show(server, root)
    name = server.on(f"/tree/{blob_name(other_blob(root))}", script)
    with pytest.raises(pfimg.BackendError, match=name):
        HttpRegistry(attempts=2).pull(url, other)
    assert_nothing_is_visible(other)
    show(server, root)
    assert pfimg.pull(url, other).image == pushed


@pytest.mark.usefixtures("pushed")
def test_a_length_that_is_too_short_shows_in_the_hash(server: Scripted, root: Path, other: pfimg.PfStore) -> None:
    url = show(server, root)
    digest = other_blob(root)
    frame = (root / blob_name(digest)).read_bytes()
    server.on(f"/tree/{blob_name(digest)}", Answer(body=frame, headers={"Content-Length": str(len(frame) - 1)}))
    with pytest.raises(pfimg.IntegrityError, match=digest):
        pfimg.pull(url, other)


@pytest.mark.usefixtures("pushed")
def test_nobody_is_waited_for_without_end(server: Scripted, root: Path, other: pfimg.PfStore) -> None:
    url = show(server, root)
    digest = other_blob(root)

    def drip(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        peer.drip(bytes(1000), 0.02)

    for script in (drip, Peer.silence):
        name = server.on(f"/tree/{blob_name(digest)}", script)
        with pytest.raises(pfimg.RegistryTimeout, match=name):
            HttpRegistry(timeout=0.2, attempts=2).pull(url, other)
        assert_nothing_is_visible(other)


@pytest.mark.usefixtures("pushed")
def test_ctrl_c_waits_for_nobody(server: Scripted, root: Path, other: pfimg.PfStore) -> None:
    """Without being told to stop, the requests would wait for a quarter of an hour."""
    url = show(server, root)
    leaf = f"/tree/{blob_name(other_blob(root))}"

    def silent(peer: Peer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        peer.silence()

    server.on(leaf, silent)
    with pytest.raises(KeyboardInterrupt):
        HttpRegistry(timeout=900, jobs=4).pull(url, other)
    assert_nothing_is_visible(other)
    assert [asked.path for asked in server.asked].count(leaf) == 1
    for thread in threading.enumerate():
        if thread.name.startswith("pfimg-request"):  # one that was being started, which nobody waits for
            thread.join()
    show(server, root)
    pfimg.pull(url, other)


def test_who_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(pfimg.BackendError, match="connection refused") as caught:
        HttpRegistry(attempts=1).exists(url)
    assert caught.value.retryable


def test_a_proxy_is_used(
    web_server: Callable[[Path], str],
    server: Scripted,
    root: Path,
    pushed: str,
    other: pfimg.PfStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            server.on(f"http://images.example.org/{path.relative_to(root)}", Answer(body=path.read_bytes()))
    monkeypatch.setenv("http_proxy", server.url)
    assert pfimg.pull("http://images.example.org", other).image == pushed
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert pfimg.exists(web_server(root))


def test_a_pair_that_does_not_belong_together_is_asked_for_again_past_caches(
    server: Scripted, root: Path, pushed: str, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    """As a cache shows it that has the old manifest and the new signature."""
    url = show(server, root)
    new = (root / "manifest.json").read_bytes()
    old = pfimg.snapshot(store, agent="tester")
    server.on(
        "/tree/manifest.json",
        Answer(body=store.get_manifest(old).to_json(), headers={"ETag": '"old"'}),
        Answer(body=new, headers={"ETag": '"new"'}),
    )
    server.on("/tree/manifest.json.sig", Answer(body=sign(new, PUBLIC_KEY), headers={"ETag": '"sig"'}), Answer(304))
    assert pfimg.pull(url, other).image == pushed
    first, again = (asked for asked in server.asked if asked.path == "/tree/manifest.json")
    assert "if-none-match" not in first.headers
    assert (again.headers["if-none-match"], again.headers["cache-control"]) == ('"old"', "no-cache")


def test_a_manifest_that_is_too_large_is_not_read(server: Scripted, other: pfimg.PfStore) -> None:
    url = server.on("/manifest.json", Answer(body=b"x", headers={"Content-Length": str(1 << 40)}))
    with pytest.raises(pfimg.LimitExceeded, match=f"{url} is larger than 1,048,576 bytes"):
        pfimg.pull(server.url, other)


def test_a_key_of_ones_own_and_none_from_the_environment(
    web_server: Callable[[Path], str], root: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("ours")
    pfimg.push(store, image, f"file://{root}", sign=tmp_path / "key")
    url = web_server(root)
    with pytest.raises(pfimg.SignatureError, match="not trusted"):
        HttpRegistry().pull(url, other)
    report = HttpRegistry(sign_key=tmp_path / "key").pull(url, other)
    assert (report.image, report.signature) == (image, "verified")
    with pytest.raises(pfimg.BadRef, match="is for another registry than <HttpRegistry for http://, https://>"):
        HttpRegistry().exists("file:///x")


def test_a_blob_of_more_than_memory_should_hold_passes_through_a_file(
    web_server: Callable[[Path], str], root: Path, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "large").write_bytes(os.urandom(20 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=work)
    pfimg.push(store, image, f"file://{root}")
    assert pfimg.pull(web_server(root), other).image == image
    assert everything(other, image) == everything(store, image)


def test_web_servers_do_not_tell_which_images_they_have(server: Scripted) -> None:
    with pytest.raises(pfimg.RegistryError):
        pfimg.list_images(server.url)
    assert server.asked == []


def test_a_secret_shows_nowhere(server: Scripted, other: pfimg.PfStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    registry = HttpRegistry(token="SECRET")
    server.on("/manifest.json", Answer(302, headers={"Location": "/elsewhere?signature=SECRET"}))
    server.on("/elsewhere?signature=SECRET", Answer(403))
    with pytest.raises(pfimg.BackendError) as caught:
        registry.pull(server.url, other)
    assert "SECRET" not in f"{caught.value}{registry!r}{registry.place(server.url)!r}{caplog.text}"
