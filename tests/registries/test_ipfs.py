"""Images on IPFS: the names they get, what moves, and what is told when a node or a gateway errs. The node is Kubo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests import servers
from tests.registries.conftest import META
from tests.registries.ipfs_places import ABSENT, IpfsPlace
from tests.registries.programs import needs_reference
from tests.registries.test_contract import assert_nothing_is_visible, everything
from tests.servers import process
from tests.servers import proxy as proxies
from tests.servers.scripted import Answer

import pfimg
from pfimg.registries.ipfs import node as node_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.proxy import Proxy
    from tests.servers.scripted import Peer

COMMAND = shutil.which("pf")


@pytest.fixture
def node(kubo: servers.Kubo, monkeypatch: pytest.MonkeyPatch) -> IpfsPlace:
    monkeypatch.setenv("IPFS_API", kubo.api)
    return IpfsPlace(kubo)


@pytest.fixture
def between(kubo: servers.Kubo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between us and the node's API."""
    with proxies.proxy(kubo.api) as between:
        monkeypatch.setenv("IPFS_API", between.url)
        yield between


@pytest.fixture
def gateway(kubo: servers.Kubo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between us and a gateway; no API is to be had."""
    with proxies.proxy(kubo.gateway) as between:
        monkeypatch.setenv("IPFS_API", "http://127.0.0.1:1")
        monkeypatch.setenv("IPFS_GATEWAY", between.url)
        yield between


def forget(between: Proxy, store: pfimg.PfStore) -> None:
    """Has the node forget what it has pinned."""
    IpfsPlace(servers.Kubo(between.url, "", store.root, store.root))


def cid(report: pfimg.PushReport) -> str:
    return report.ref.removeprefix("ipfs://")


def image_of(store: pfimg.PfStore, blobs: int) -> str:
    """An image of so many blobs."""
    few = pfimg.snapshot(
        store, agent="tester", cache=store.put_pages(META, k=[bytes(META.page_bytes)], v=[bytes(META.page_bytes)])
    )
    pages = blobs - len(everything(store, few)) + 1
    k = [at.to_bytes(2, "big") * (META.page_bytes // 2) for at in range(pages)]
    return pfimg.snapshot(store, agent="tester", cache=store.put_pages(META, k=k, v=[bytes(META.page_bytes)] * pages))


@pytest.mark.parametrize("entries", [10, 2_240, 2_241, 2_242, 20_000])
def test_the_cid_is_that_of_the_same_files_added_by_kubo(
    node: IpfsPlace, store: pfimg.PfStore, other: pfimg.PfStore, tmp_path: Path, entries: int
) -> None:
    image = image_of(store, entries - 2)
    sent = pfimg.push(store, image, "ipfs://")
    manifest, signature = node.read_pair()
    files = tmp_path / "files"
    files.mkdir()
    (files / "manifest.json").write_bytes(manifest)
    (files / "manifest.json.sig").write_bytes(signature)
    digests = sorted(everything(store, image))
    for digest, frame in zip(digests, store.encode_frames(digests, codec="store"), strict=True):
        (files / f"blob_{digest.removeprefix('sha256:')}.zst").write_bytes(frame)
    assert len(list(files.iterdir())) == entries
    assert node.kubo.run("add", "-r", "--quieter", "--only-hash", files).decode().strip() == cid(sent)
    listed = node.kubo.run("ls", cid(sent)).decode().splitlines()
    assert sorted(line.split()[-1] for line in listed) == sorted(path.name for path in files.iterdir())
    assert node.kubo.run("cat", f"{cid(sent)}/manifest.json") == store.get_manifest(image).to_json()
    # Of one page only that is fetched, and then the rest.
    pfimg.pull(sent.ref, other, layers=["cache"], ixs=[0] if entries > 10 else [])
    assert pfimg.pull(sent.ref, other).skipped < 20
    assert everything(other, image) == everything(store, image)


def test_an_image_has_one_cid_wherever_and_however_it_is_pushed_from(
    node: IpfsPlace, tmp_path: Path, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, f"file://{tmp_path}/carried")
    stores = [store]
    for codec in ("zstd", "store"):
        stores.append(pfimg.PfStore.open(tmp_path / codec, codec=codec))
        pfimg.pull(f"file://{tmp_path}/carried", stores[-1])
    found = set()
    for number, source in enumerate([*stores, *stores]):
        monkeypatch.setenv("PFIMG_THREADS", str(1 + number % 3))
        sent = pfimg.push(source, image, "ipfs://", jobs=1 + 7 * (number % 2))
        found.add(sent.ref)
        assert sent.sent > 0
        node.call("pin/rm", arg=cid(sent))
        node.call("repo/gc")
    assert len(found) == 1
    again = pfimg.push(store, image, "ipfs://", codec="zstd")
    assert again.ref not in found
    assert pfimg.exists(again.ref)


def test_what_is_pinned_is_not_sent_again(between: Proxy, store: pfimg.PfStore, image: str) -> None:
    first = pfimg.push(store, image, "ipfs://")
    assert between.count("POST", "dag/import") == 1
    again = pfimg.push(store, image, "ipfs://")
    assert (again.ref, again.sent, again.bytes_sent) == (first.ref, 0, 0)
    assert between.count("POST", "dag/import") == 1


def test_a_fork_is_sent_as_what_it_adds_to_the_directory_that_is_named(
    between: Proxy, store: pfimg.PfStore, make_image: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    parent, fork = make_image(0, pages=2_500), make_image(1, pages=2_500)
    base = pfimg.push(store, parent, "ipfs://")
    assert caplog.messages == []
    sent = pfimg.push(store, fork, base.ref)
    assert sent.sent == len(everything(store, fork).keys() - everything(store, parent).keys())
    assert "another CID" in caplog.text
    first, second = (len(asked.body) for asked in between.asked if "dag/import" in asked.path)
    assert second < first / 4  # most of that is the new page manifest


def test_a_node_that_has_lost_what_it_has_pinned_is_sent_all_of_it(store: pfimg.PfStore, make_image: Callable[..., str]) -> None:
    with servers.kubo() as kubo, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPFS_API", kubo.api)
        parent, fork = make_image(0), make_image(1)
        base = pfimg.push(store, parent, "ipfs://")
        shared = set(everything(store, parent)) & set(everything(store, fork))
        listed = {name: found for found, _, name in (line.split() for line in kubo.run("ls", cid(base)).decode().splitlines())}
        for name in (f"blob_{digest.removeprefix('sha256:')}.zst" for digest in sorted(shared)[:3]):
            # The names of files are those of multihashes, in base 32 and upper case.
            multihash = (
                kubo.run("cid", "format", "-f", "%M", "-b", "base32upper", listed[name]).decode().strip().removeprefix("B")
            )
            (lost,) = kubo.repo.glob(f"blocks/*/{multihash}.data")
            lost.unlink()
        sent = pfimg.push(store, fork, base.ref)
        assert sent.sent == len(everything(store, fork))
        assert pfimg.exists(sent.ref)


@needs_reference
def test_the_reference_pulls_what_we_push(
    node: IpfsPlace, tmp_path: Path, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    assert COMMAND is not None
    image = make_image(pages=40)
    sent = pfimg.push(store, image, "ipfs://")
    theirs = tmp_path / "theirs"
    subprocess.run([COMMAND, "--store", theirs, "pull", sent.ref], check=True, capture_output=True, timeout=60)
    pulled = pfimg.PfStore.open(theirs)
    for digest, data in everything(store, image).items():
        assert pulled.get(digest) == data
    assert node.root == cid(sent)


def test_a_name_and_a_path_lead_to_an_image(node: IpfsPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    sent = pfimg.push(store, image, "ipfs://")
    node.call("files/mkdir", arg="/shelf/agents", parents="true")
    node._copy(cid(sent), "/shelf/agents/one")
    shelf = json.loads(node.call("files/stat", arg="/shelf"))["Hash"]
    key = json.loads(node.call("key/gen", arg=f"key-{shelf[-8:]}"))["Id"]
    node.call("name/publish", arg=f"/ipfs/{shelf}", key=f"key-{shelf[-8:]}", allow_offline="true")
    for ref in (f"ipfs://{shelf}/agents/one", f"ipfs://{key}/agents/one"):
        assert pfimg.exists(ref)
        assert pfimg.pull(ref, other).image == image
        with pytest.raises(pfimg.BadRef):
            pfimg.push(store, image, ref)
    assert everything(other, image) == everything(store, image)
    with pytest.raises(pfimg.BackendError, match="there is no image: the directory has no 'two'"):
        pfimg.pull(f"ipfs://{shelf}/agents/two", other)
    with pytest.raises(pfimg.BadRef, match="ipfs name publish"):
        pfimg.push(store, image, f"ipfs://{key}")
    node.call("files/rm", arg="/shelf", recursive="true")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("ipfs://", "names no image"),
        ("ipfs://bafynonsense", "base 32"),
        ("ipfs://zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA", "cid base32"),
    ],
)
def test_what_is_no_cid_is_refused(node: IpfsPlace, other: pfimg.PfStore, ref: str, message: str) -> None:
    with pytest.raises(pfimg.BadRef, match=message):
        pfimg.pull(ref, other)
    assert node.root is None


def test_a_few_blobs_are_fetched_without_the_rest(
    between: Proxy, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=200)
    sent = pfimg.push(store, image, "ipfs://")
    got = pfimg.pull(sent.ref, other, layers=["cache"], ixs=[1, 3])
    asked = between.count("POST", "block/get")
    assert got.fetched <= asked <= got.fetched + 3
    assert between.count("POST", "dag/export") == 0


def test_a_gateway_is_read_and_not_written(
    node: IpfsPlace, gateway: Proxy, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=200)
    sent = pfimg.registries.IpfsRegistry(node.kubo.api).push("ipfs://", store.get_manifest(image), store)
    assert pfimg.exists(sent.ref)
    pfimg.pull(sent.ref, other)
    assert everything(other, image) == everything(store, image)
    assert gateway.count("GET", r"\?format=car") == 1
    with pytest.raises(pfimg.BackendError, match="IPFS_API"):
        pfimg.push(store, image, "ipfs://")
    with pytest.raises(pfimg.BackendError, match="names are asked of a node"):
        pfimg.exists("ipfs://images.example.org")


def cut(peer: Peer, forward: Callable[[], servers.Response]) -> None:
    """Nothing but the first half of what comes, as though it were all."""
    body = forward().body
    Answer(200, body[: len(body) // 2])(peer)


def flipped(peer: Peer, forward: Callable[[], servers.Response]) -> None:
    body = bytearray(forward().body)
    body[-1] ^= 1
    Answer(200, bytes(body))(peer)


@pytest.mark.parametrize(
    "fault", [cut, flipped, proxies.answer(200, body=b"<html>"), proxies.lost], ids=["cut", "flipped", "html", "lost"]
)
def test_an_archive_that_is_not_what_it_should_be_does_no_harm(
    node: IpfsPlace,
    gateway: Proxy,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    make_image: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    fault: proxies.Act,
) -> None:
    image = make_image(pages=200)
    sent = pfimg.registries.IpfsRegistry(node.kubo.api).push("ipfs://", store.get_manifest(image), store)
    gateway.on("GET", r"\?format=car", fault)
    pfimg.pull(sent.ref, other)
    assert everything(other, image) == everything(store, image)
    assert "broke off" in caplog.text


def test_a_block_that_does_not_match_its_cid_is_told(
    node: IpfsPlace, gateway: Proxy, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    sent = pfimg.registries.IpfsRegistry(node.kubo.api).push("ipfs://", store.get_manifest(image), store)
    fs = store.get_manifest(image).world.fs
    entry = node.entries(cid(sent))[f"blob_{fs.removeprefix('sha256:')}.zst"]
    gateway.on("GET", entry, flipped)
    with pytest.raises(pfimg.IntegrityError, match=f"{fs} .*gave something else for block {entry}") as caught:
        pfimg.pull(sent.ref, other)
    assert caught.value.digest == fs
    assert_nothing_is_visible(other)
    gateway.on("GET", entry, proxies.answer(404))
    with pytest.raises(pfimg.BlobNotFound, match=f"{fs} is not in {sent.ref}"):
        pfimg.pull(sent.ref, other)
    assert_nothing_is_visible(other)
    pfimg.pull(sent.ref, other)


def test_a_root_that_is_not_pinned_is_no_success(between: Proxy, store: pfimg.PfStore, image: str) -> None:
    def refusing(peer: Peer, forward: Callable[[], servers.Response]) -> None:
        lines = [json.loads(line) for line in forward().body.splitlines()]
        root = next(line["Root"] for line in lines if "Root" in line)
        root["PinErrorMsg"] = "no room for pins"
        Answer(200, "\n".join(map(json.dumps, lines)).encode())(peer)

    between.on("POST", "dag/import", refusing)
    with pytest.raises(pfimg.BackendError, match=r"has not pinned ipfs://bafy.*: no room for pins"):
        pfimg.push(store, image, "ipfs://")
    for body in (b"", b'{"Stats":{"BlockCount":0,"BlockBytesCount":0}}'):
        forget(between, store)
        between.on("POST", "dag/import", proxies.answer(200, body=body))
        with pytest.raises(pfimg.BackendError, match="does not say that it has bafy"):
            pfimg.push(store, image, "ipfs://")
    between.on("POST", "dag/import", proxies.answer(500, body=b'{"Message":"unexpected EOF","Code":0,"Type":"error"}'))
    with pytest.raises(pfimg.BackendError, match="failed at dag/import: unexpected EOF"):
        pfimg.push(store, image, "ipfs://")
    assert pfimg.push(store, image, "ipfs://").sent > 0


def test_a_node_that_goes_away_in_mid_push(store: pfimg.PfStore, other: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(store, 6_000)
    with servers.kubo() as gone:
        monkeypatch.setenv("IPFS_API", gone.api)

        def end(event: pfimg.Progress) -> None:
            if event.phase == "send" and event.done == 0:
                gone.run("shutdown")

        with pytest.raises(pfimg.BackendError, match="IPFS_API"):
            pfimg.push(store, image, "ipfs://", progress=end)
    with servers.kubo() as kubo:
        monkeypatch.setenv("IPFS_API", kubo.api)
        sent = pfimg.push(store, image, "ipfs://")
        pfimg.pull(sent.ref, other)
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("act", [proxies.lost, proxies.applied(502), proxies.applied(504)], ids=["no answer", "502", "504"])
def test_a_push_whose_answer_is_lost_is_one_if_the_node_has_pinned_it(
    between: Proxy, store: pfimg.PfStore, other: pfimg.PfStore, image: str, act: proxies.Act
) -> None:
    between.on("POST", "dag/import", act)
    sent = pfimg.push(store, image, "ipfs://")
    assert sent.sent == len(everything(store, image))
    assert (between.count("POST", "dag/import"), between.count("POST", "pin/ls")) == (1, 2)
    assert pfimg.pull(sent.ref, other).image == image


def test_a_push_that_was_not_carried_out_is_none(between: Proxy, store: pfimg.PfStore, image: str) -> None:
    between.on("POST", "dag/import", lambda peer, _: peer.close())
    with pytest.raises(pfimg.BackendError, match="broke off"):
        pfimg.push(store, image, "ipfs://")
    assert between.count("POST", "pin/ls") == 2
    between.on("POST", "dag/import", proxies.lost)
    between.on("POST", "pin/ls", proxies.passed, proxies.answer(500, body=b'{"Message":"no room","Code":0,"Type":"error"}'))
    with pytest.raises(pfimg.BackendError, match="broke off"):  # and not what came of the question
        pfimg.push(store, image, "ipfs://")


def test_a_node_that_takes_long_to_store_much_is_waited_for(
    between: Proxy, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_GRACE_SECONDS", 0)

    def slow(peer: Peer, forward: Callable[[], servers.Response]) -> None:
        response = forward()
        peer.stopped.wait(5)
        proxies.respond(peer, response)

    registry = pfimg.registries.open("ipfs://", timeout=3)
    between.always("POST", "dag/import", slow)
    registry.push("ipfs://", store.get_manifest(image), store)
    assert between.count("POST", r"pin/ls\?arg=") == 2  # once its time was up it was asked what had come of it
    forget(between, store)
    monkeypatch.setattr(node_module, "_SLOWEST", 1 << 8)  # some seconds more for what is sent
    registry.push("ipfs://", store.get_manifest(image), store)
    assert between.count("POST", r"pin/ls\?arg=") == 3


def test_a_node_that_is_started_again_is_pushed_to_again(
    store: pfimg.PfStore, other: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same repository, which has a part of what the first push has sent."""
    image = image_of(store, 6_000)
    with servers.kubo() as kubo:
        monkeypatch.setenv("IPFS_API", kubo.api)
        (daemon,) = (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal() and is_daemon_of(entry, kubo.repo))
        killed: list[int] = []

        def kill(event: pfimg.Progress) -> None:
            if event.phase == "send" and event.done > 2_000 and not killed:
                killed.append(int(daemon.name))
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(pfimg.BackendError, match="IPFS_API"):
            pfimg.push(store, image, "ipfs://", progress=kill)
        assert killed
        with restarted(kubo) as api:
            monkeypatch.setenv("IPFS_API", api)
            sent = pfimg.push(store, image, "ipfs://")
            assert sent.sent == len(everything(store, image))
            pfimg.pull(sent.ref, other)
    assert everything(other, image) == everything(store, image)


def is_daemon_of(process: Path, repo: Path) -> bool:
    with suppress(OSError):  # it has ended, or is somebody else's
        return b"daemon" in (process / "cmdline").read_bytes() and f"IPFS_PATH={repo}".encode() in (
            process / "environ"
        ).read_bytes().split(b"\0")
    return False


@contextmanager
def restarted(kubo: servers.Kubo) -> Iterator[str]:
    """Another daemon on a repository whose daemon is gone; gives the address of its API."""
    (kubo.repo / "api").unlink(missing_ok=True)
    directory = kubo.repo.parent / "again"
    directory.mkdir()

    def ready() -> str | None:
        host, _, port = (kubo.repo / "api").read_text().strip().removeprefix("/ip4/").partition("/tcp/")
        api = f"http://{host}:{port}"
        return api if servers.request(f"{api}/api/v0/version", "POST").status == 200 else None

    env = {"IPFS_PATH": str(kubo.repo), "IPFS_TELEMETRY": "off"}
    with process.running([kubo.program, "daemon", "--offline"], directory, ready, env=env) as api:
        yield api


def test_a_node_that_is_not_there(store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPFS_API", "/ip4/127.0.0.1/tcp/1")
    for act in (lambda: pfimg.push(store, image, "ipfs://"), lambda: pfimg.exists(f"ipfs://{ABSENT}")):
        with pytest.raises(pfimg.BackendError, match=r"http://127.0.0.1:1/.*refused.*is an IPFS node running there\? IPFS_API"):
            act()


def test_an_offline_node_that_has_it_not(node: IpfsPlace, other: pfimg.PfStore) -> None:
    assert not pfimg.exists(f"ipfs://{ABSENT}")
    with pytest.raises(pfimg.BackendError, match=rf"no image here: the IPFS node at {node.kubo.api} \(IPFS_API\)") as caught:
        pfimg.pull(f"ipfs://{ABSENT}", other)
    assert caught.value.status == 404


def test_a_node_that_looks_for_it_in_vain_is_not_waited_for(other: pfimg.PfStore) -> None:
    with servers.kubo(offline=False) as kubo:
        registry = pfimg.registries.IpfsRegistry(kubo.api, timeout=0.5)
        with pytest.raises(pfimg.RegistryTimeout, match=r"IPFS_API.* did not end block/get in time"):
            registry.exists(f"ipfs://{ABSENT}")
        with pytest.raises(pfimg.RegistryTimeout):
            registry.pull(f"ipfs://{ABSENT}", other)


def test_credentials_of_the_api(between: Proxy, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    between.on("POST", "", proxies.answer(403))
    with pytest.raises(pfimg.BackendError, match="IPFS_API_AUTH"):
        pfimg.push(store, image, "ipfs://")
    for text, header in (("bearer:secret", "Bearer secret"), ("basic:me:secret", "Basic bWU6c2VjcmV0")):
        monkeypatch.setenv("IPFS_API_AUTH", text)
        pfimg.push(store, image, "ipfs://")
        assert between.asked[-1].headers["authorization"] == header
    monkeypatch.setenv("IPFS_API_AUTH", "secret")
    with pytest.raises(pfimg.BadRef, match="neither bearer") as caught:
        pfimg.push(store, image, "ipfs://")
    assert "secret" not in str(caught.value)


def test_something_else_at_the_address(between: Proxy, store: pfimg.PfStore, image: str) -> None:
    between.on("POST", "", proxies.answer(404))
    with pytest.raises(pfimg.BackendError, match="no API of an IPFS node, which IPFS_API must name"):
        pfimg.push(store, image, "ipfs://")


def test_other_digests_and_layouts_are_refused(node: IpfsPlace, tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    blake3 = pfimg.PfStore.open(tmp_path / "blake3", digest="blake3")
    with pytest.raises(pfimg.FormatError, match="digests of sha256"):
        pfimg.push(blake3, pfimg.snapshot(blake3, agent="tester"), "ipfs://")
    with pytest.raises(pfimg.RegistryError, match="carries no packs"):
        pfimg.push(store, image, "ipfs://", layout="packed")
    assert node.root is None
