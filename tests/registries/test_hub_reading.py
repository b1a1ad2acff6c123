"""Reading from the Hub of the tests with the published client: listings, downloads, a file system, and the command."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi, HfFileSystem, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from tests.hub import Hub
from tests.registries.hub_calls import ATTRIBUTES, REPO, add, commit, download, noise, tree, written

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.fixture
def bare(hub: Hub) -> HfApi:
    """A client, and a Hub without repositories."""
    return HfApi(endpoint=hub.url, token=hub.token())


@pytest.fixture
def api(bare: HfApi) -> HfApi:
    """A client, and a Hub with one repository that has nothing in it."""
    bare.create_repo(REPO, repo_type="dataset", private=True)
    return bare


# Looking.


def test_a_listing_comes_in_pages(hub: Hub, api: HfApi) -> None:
    hub.limits.tree_page, hub.limits.tree_page_expanded = 7, 3
    files = {f"{number % 5}/{number % 3}/{number}.txt": str(number).encode() for number in range(40)}
    commit(api, *(add(path, content) for path, content in files.items()))
    listed = tree(api, recursive=True)
    assert {path for path, entry in listed.items() if isinstance(entry, RepoFile)} == {*files, ATTRIBUTES}
    assert {path for path, entry in listed.items() if isinstance(entry, RepoFolder)} == {
        *(str(a) for a in range(5)),
        *(f"{a}/{b}" for a in range(5) for b in range(3)),
    }
    assert len(hub.seen("GET", "/tree/")) == -(-len(listed) // 7)
    assert set(api.list_repo_files(REPO, repo_type="dataset")) == {*files, ATTRIBUTES}
    assert tree(api).keys() == {*"01234", ATTRIBUTES}
    assert tree(api, "1/2").keys() == {path for path in files if path.startswith("1/2/")}
    assert tree(api, "1", recursive=True, expand=True).keys() == {path for path in listed if path.startswith("1/")}
    for path in ("1/9", "1/1/1.txt"):
        with pytest.raises(EntryNotFoundError):
            tree(api, path)


def test_a_listing_tells_when_things_changed(api: HfApi) -> None:
    first = commit(api, add("a/1.txt", b"1"), add("b/2.txt", b"2")).oid
    second = commit(api, add("b/2.txt", b"3"), add("c.txt", b"4")).oid
    last = {path: entry.last_commit for path, entry in tree(api, recursive=True, expand=True).items()}
    changed = {path: info.oid for path, info in last.items() if info is not None and path != ATTRIBUTES}
    assert changed == {"a": first, "a/1.txt": first, "b": second, "b/2.txt": second, "c.txt": second}
    assert all(entry.last_commit is None for entry in tree(api).values())


def test_paths_are_looked_up(hub: Hub, api: HfApi) -> None:
    commit(api, add("a/b c.txt", b"12"), add("a/ü.bin", noise(9)))
    found = api.get_paths_info(REPO, ["a/b c.txt", "a/ü.bin", "a", "missing", "a/missing"], repo_type="dataset", expand=True)
    assert {entry.path: getattr(entry, "size", None) for entry in found} == {"a/b c.txt": 2, "a/ü.bin": 9, "a": None}
    assert all(entry.last_commit is not None for entry in found)
    hub.limits.paths = 3
    with pytest.raises(HfHubHTTPError) as caught:
        api.get_paths_info(REPO, ["a", "b", "c", "d"], repo_type="dataset")
    assert caught.value.response.status_code == 413


def test_a_repository_tells_of_its_files(api: HfApi) -> None:
    first = commit(api, add("a.txt", b"12")).oid
    second = commit(api, add("b.bin", noise(9))).oid
    info = api.dataset_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha, info.private) == (REPO, "tester", second, True)
    files = {sibling.rfilename: (sibling.size, sibling.lfs and sibling.lfs.sha256) for sibling in info.siblings or []}
    assert files.pop(ATTRIBUTES)[1] is None
    assert files == {"a.txt": (2, None), "b.bin": (9, hashlib.sha256(noise(9)).hexdigest())}
    names: Iterable[Any] = api.dataset_info(REPO, revision=first).siblings or []
    assert {sibling.rfilename for sibling in names} == {"a.txt", ATTRIBUTES}
    brief = api.dataset_info(REPO, expand=["sha"])
    assert (brief.sha, brief.siblings, brief.private) == (second, None, None)


# Downloading.


@pytest.mark.parametrize("path", ["sub/some text.txt", "sub/some bytes.bin"])
def test_a_file_is_downloaded_once(hub: Hub, api: HfApi, tmp_path: Path, path: str) -> None:
    content = noise(100_000) if path.endswith("bin") else b"text " * 1000
    first = commit(api, add(path, content)).oid
    assert api.file_exists(REPO, path, repo_type="dataset")
    for _ in range(2):
        assert download(api, path) == content
        assert len(hub.seen("GET", "/content/|/resolve-cache/")) == 1
    # The same content under a new commit is known by its ETag; a new content is not.
    commit(api, add("other.txt", b"x"))
    assert download(api, path) == content
    assert len(hub.seen("GET", "/content/|/resolve-cache/")) == 1
    commit(api, add(path, content + b"!"))
    assert download(api, path) == content + b"!"
    # A commit is known for good, without any question.
    asked = len(hub.requests)
    assert download(api, path, revision=first) == content
    assert len(hub.requests) == asked
    assert download(api, path, local_dir=tmp_path / "here") == content + b"!"
    assert (tmp_path / "here" / path).read_bytes() == content + b"!"


def test_a_file_that_is_not_there(hub: Hub, api: HfApi) -> None:
    assert not api.file_exists(REPO, "missing.bin", repo_type="dataset")
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        download(api, "missing.bin")
    # By this the client remembers that the commit has no such file.
    assert caught.value.response.headers["X-Repo-Commit"] == hub.log(REPO)[0].id


def test_the_storage_host_gets_no_credentials(hub: Hub, api: HfApi) -> None:
    commit(api, add("a.bin", noise(1000)))
    download(api, "a.bin")
    at_storage = [seen for seen in hub.requests if seen.host == "storage"]
    assert [seen.method for seen in at_storage] == ["PUT", "GET"]
    assert not any("authorization" in seen.headers for seen in at_storage)
    url = hub.storage_url + at_storage[1].target
    assert get_session().get(url).content == noise(1000)
    assert get_session().get(url, headers={"Authorization": f"Bearer {hub.token()}"}).status_code == 400
    assert get_session().get(url[:-1] + "x").status_code == 403
    assert not any(hub.token() in str(seen) for seen in hub.requests)


@pytest.mark.parametrize("path", ["a.txt", "a.bin"])
def test_ranges_and_conditions(hub: Hub, api: HfApi, path: str) -> None:
    content = b"0123456789" * 10
    commit(api, add(path, content))
    url = f"{hub.url}/datasets/{REPO}/resolve/main/{path}"

    def get(method: str = "GET", **headers: str) -> Any:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return get_session().request(method, url, headers={"Authorization": f"Bearer {hub.token()}", **told})

    whole = get()
    etag = whole.headers["ETag"]
    assert (whole.status_code, whole.content, whole.headers["Accept-Ranges"]) == (200, content, "bytes")
    head = get("HEAD")
    assert (head.content, head.headers["Content-Length"], head.headers["ETag"]) == (b"", "100", etag)
    for asked, start, end in (("10-19", 10, 20), ("90-", 90, 100), ("-5", 95, 100), ("95-200", 95, 100), ("-500", 0, 100)):
        part = get(Range=f"bytes={asked}")
        assert (part.status_code, part.content) == (206, content[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/100"
    beyond = get(Range="bytes=100-")
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */100")
    assert get(Range="bytes=0-1", If_Range=etag).status_code == 206
    assert get(Range="bytes=0-1", If_Range='"other"').content == content
    assert (get(If_None_Match=etag).status_code, get(If_None_Match='"other"').status_code) == (304, 200)


def test_as_a_file_system(hub: Hub, api: HfApi) -> None:
    large = noise(300_000)
    commit(api, add("a/b.txt", b"text"), add("a/large.bin", large), add("c.txt", b"c"))
    fs = HfFileSystem(endpoint=hub.url, token=hub.token(), skip_instance_cache=True)
    root = f"datasets/{REPO}"
    assert sorted(map(str, fs.ls(root, detail=False))) == [f"{root}/{name}" for name in (ATTRIBUTES, "a", "c.txt")]
    below: Any = fs.ls(f"{root}/a")
    assert {item["name"]: item["size"] for item in below} == {
        f"{root}/a/b.txt": 4,
        f"{root}/a/large.bin": 300_000,
    }
    assert sorted(fs.glob(f"{root}/**/*.txt")) == [f"{root}/a/b.txt", f"{root}/c.txt"]
    assert fs.read_bytes(f"{root}/a/b.txt") == b"text"
    with fs.open(f"{root}/a/large.bin", block_size=10_000) as file:
        file.seek(123_456)
        assert file.read(1000) == large[123_456:124_456]
    assert hub.seen("GET", "/content/")[-1].headers["range"].startswith("bytes=123456-")
    with fs.open(f"{root}/new.bin", "wb") as file:
        file.write(large[:1000])
    fs.rm(f"{root}/c.txt")
    assert written(hub) == {"a/b.txt": b"text", "a/large.bin": large, "new.bin": large[:1000]}


# The rest.


@pytest.mark.usefixtures("api")
def test_the_command_finds_the_hub_by_the_environment(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a.bin").write_bytes(noise(1000))
    (tmp_path / "up" / "b.txt").write_bytes(b"b")

    def command(*arguments: str) -> None:
        hf = Path(sys.executable).with_name("hf")
        subprocess.run([hf, *arguments], check=True, capture_output=True, env=os.environ, cwd=tmp_path)

    command("upload", REPO, "up", "into", "--repo-type", "dataset")
    assert written(hub) == {"into/a.bin": noise(1000), "into/b.txt": b"b"}
    command("download", REPO, "into/a.bin", "--repo-type", "dataset", "--local-dir", "down")
    assert (tmp_path / "down" / "into" / "a.bin").read_bytes() == noise(1000)


def test_what_a_test_writes_the_client_reads(hub: Hub, bare: HfApi) -> None:
    files: dict[str, bytes | None] = {"a.txt": b"a", "b.bin": noise(100)}
    hub.write(REPO, files)
    hub.write(REPO, {"a.txt": None, "c.txt": b"c"})
    assert {path: download(bare, path) for path in ("b.bin", "c.txt")} == {"b.bin": noise(100), "c.txt": b"c"}
    assert not bare.file_exists(REPO, "a.txt", repo_type="dataset")
    entry = tree(bare)["b.bin"]
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None


def test_a_hub_ends_with_its_connections() -> None:
    before = set(threading.enumerate())
    with Hub() as own:
        session = get_session()
        for url in (own.url, own.storage_url):
            assert session.get(url).status_code == 404
        assert len(set(threading.enumerate()) - before) > 2
        directory = own.directory
    assert set(threading.enumerate()) <= before
    assert not directory.exists()
    for url in (own.url, own.storage_url):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
