"""The Hub of the tests does what the published client expects: each of its calls that matters to a registry, byte for byte.

Nothing of pfimg is used here. Reading is in `test_hub_reading.py`; what is refused, and what goes wrong on demand, in
`test_hub_faults.py`.
"""

from __future__ import annotations

import hashlib
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tests.registries.hub_calls import ATTRIBUTES, REPO, add, commit, download, noise, tree, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hub import Hub


@pytest.fixture
def bare(hub: Hub) -> HfApi:
    """A client, and a Hub without repositories."""
    return HfApi(endpoint=hub.url, token=hub.token())


@pytest.fixture
def api(bare: HfApi) -> HfApi:
    """A client, and a Hub with one repository that has nothing in it."""
    bare.create_repo(REPO, repo_type="dataset", private=True)
    return bare


# Who may do what.


def test_a_token_says_who_one_is(hub: Hub, bare: HfApi) -> None:
    assert (bare.whoami()["name"], bare.whoami()["auth"]["accessToken"]["role"]) == ("tester", "write")
    other = bare.whoami(token=hub.token("other", "read"))
    assert (other["name"], other["auth"]["accessToken"]["role"]) == ("other", "read")
    with pytest.raises(HfHubHTTPError) as caught:
        bare.whoami(token="hf_wrong")
    assert caught.value.response.status_code == 401


def test_a_repository_is_created_once(hub: Hub, bare: HfApi) -> None:
    url = bare.create_repo(REPO, repo_type="dataset", private=True)
    assert (str(url), url.repo_id, url.repo_type) == (f"{hub.url}/datasets/{REPO}", REPO, "dataset")
    assert bare.repo_info(REPO, repo_type="dataset").private
    with pytest.raises(HfHubHTTPError) as caught:
        bare.create_repo(REPO, repo_type="dataset")
    assert caught.value.response.status_code == 409
    assert bare.create_repo(REPO, repo_type="dataset", exist_ok=True) == url
    assert bare.repo_info(REPO, repo_type="dataset").private
    assert not bare.repo_exists(REPO)  # a model is another thing
    assert bare.create_repo("mine").repo_id == "tester/mine"
    assert not bare.repo_info("tester/mine").private


@pytest.mark.parametrize(("user", "role"), [("tester", "read"), ("other", "write")])
def test_one_creates_and_changes_with_a_write_token_of_ones_own(hub: Hub, api: HfApi, user: str, role: str) -> None:
    api.create_repo("tester/public", repo_type="dataset")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("tester/new", repo_type="dataset", token=hub.token(user, role))
    assert caught.value.response.status_code == 403
    for name in ("tester/public", REPO):
        with pytest.raises(HfHubHTTPError) as caught:
            api.upload_file(
                path_or_fileobj=b"x", path_in_repo="x", repo_id=name, repo_type="dataset", token=hub.token(user, role)
            )
        hidden = user == "other" and name == REPO
        assert caught.value.response.status_code == (404 if hidden else 403)
    assert hub.files("tester/public").keys() == hub.files(REPO).keys() == {ATTRIBUTES}


def test_a_private_repository_is_hidden_from_others(hub: Hub, api: HfApi) -> None:
    commit(api, add("a.txt", b"secret"))
    assert download(api, "a.txt", token=hub.token("tester", "read")) == b"secret"
    for token, status in ((False, 401), (hub.token("other"), 404)):
        assert not api.repo_exists(REPO, repo_type="dataset", token=token)
        assert not api.file_exists(REPO, "a.txt", repo_type="dataset", token=token)
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.list_repo_refs(REPO, repo_type="dataset", token=token)
        assert caught.value.response.status_code == status


def test_a_wrong_token_is_refused_where_none_would_do(bare: HfApi) -> None:
    bare.create_repo(REPO, repo_type="dataset")
    assert bare.repo_info(REPO, repo_type="dataset", token=False).private is False
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        bare.repo_info(REPO, repo_type="dataset", token="hf_wrong")
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_a_repository_is_deleted(api: HfApi) -> None:
    api.delete_repo(REPO, repo_type="dataset")
    assert not api.repo_exists(REPO, repo_type="dataset")
    api.delete_repo(REPO, repo_type="dataset", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO, repo_type="dataset")


# Uploading.


def test_a_file_goes_where_its_name_and_bytes_send_it(hub: Hub, api: HfApi) -> None:
    files = {
        "text.txt": b"some text\n",
        "cut.txt": b"x" * 511 + "é".encode(),  # the sample of 512 bytes ends inside a character
        "binary.txt": noise(100),
        "by-name.bin": b"some text\n",
        "empty.txt": b"",
        "empty.bin": b"",
    }
    commit(api, *(add(path, content) for path, content in files.items()))
    assert written(hub) == files
    stored = {path: entry.lfs is not None for path, entry in tree(api).items() if isinstance(entry, RepoFile)}
    # An empty file cannot go to LFS, whatever its name.
    assert {path for path, lfs in stored.items() if lfs} == {"binary.txt", "by-name.bin"}
    assert {path: download(api, path) for path in files} == files


def test_the_attributes_of_a_repository_decide(api: HfApi) -> None:
    rules = "*.dat filter=lfs diff=lfs merge=lfs -text\nraw/* -filter\n*.zst -filter -text\n"
    commit(api, add(ATTRIBUTES, rules.encode()))
    commit(api, *(add(path, b"text") for path in ("a.dat", "raw/a.dat", "a.zst", "deep/er/a.dat")))
    lfs = {path for path, entry in tree(api, recursive=True).items() if isinstance(entry, RepoFile) and entry.lfs}
    assert lfs == {"a.dat", "deep/er/a.dat"}


def test_ids_are_those_of_git(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    files = {"a/b.txt": b"one", "a/b/c.txt": b"two", "a-b.txt": b"three", "a/b/large.bin": noise(1000), "ä.txt": b"four"}
    commit(api, *(add(path, content) for path, content in files.items()))
    listed = tree(api, recursive=True)
    for path in hub.files(REPO):
        content = hub.files(REPO)[path]
        entry = listed[path]
        assert isinstance(entry, RepoFile)
        assert entry.size == len(content)
        if path.endswith(".bin"):
            assert entry.lfs is not None
            assert (entry.lfs.size, entry.lfs.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.lfs.sha256}\nsize {entry.size}\n".encode()
            assert entry.lfs.pointer_size == len(content)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)

    def git(*arguments: str) -> str:
        # Neither attributes nor settings of the machine: the bytes as they are.
        switches = ["-c", "core.attributesFile=/dev/null", "-c", "core.autocrlf=false", "-c", "filter.lfs.clean=cat"]
        switches += ["-c", "filter.lfs.process=", "-c", "filter.lfs.required=false", "-c", "core.quotePath=false"]
        command = ["git", *switches, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    git("add", *hub.files(REPO))
    lines = [line.split(maxsplit=3) for line in git("ls-tree", "-r", "-t", git("write-tree").strip()).splitlines()]
    ids = {path: entry.blob_id if isinstance(entry, RepoFile) else entry.tree_id for path, entry in listed.items()}
    assert {path: oid for _, _, oid, path in lines} == ids


NAMES = [
    "plain.txt",
    "with space.txt",
    "a%2Fb.txt",
    "quest?ion#mark.txt",
    "ünï/cödé.bin",
    "sub/deep/er/x.bin",
    "+&=.txt",
    "empty",
]


def test_a_folder_is_uploaded_and_downloaded(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    files = {name: b"" if name == "empty" else noise(1000 + at, at) for at, name in enumerate(NAMES)}
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=tmp_path / "folder")
    assert written(hub) == files
    place = Path(api.snapshot_download(REPO, repo_type="dataset", cache_dir=tmp_path / "cache"))
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {*files, ATTRIBUTES}
    assert all((place / name).read_bytes() == content for name, content in files.items())
    # Once more, there is nothing to transfer; and what is asked away goes.
    gone = len(hub.seen("GET", "/content/|/resolve"))
    api.snapshot_download(REPO, repo_type="dataset", cache_dir=tmp_path / "cache")
    assert len(hub.seen("GET", "/content/|/resolve")) == gone
    (tmp_path / "folder" / "plain.txt").unlink()
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=tmp_path / "folder", delete_patterns="*.txt")
    assert written(hub) == {name: content for name, content in files.items() if name != "plain.txt"}


def test_part_of_a_snapshot_is_downloaded(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    files = {f"{folder}/{number}.bin": noise(100, number) for number, folder in enumerate("aabb")}
    commit(api, *(add(path, content) for path, content in files.items()))
    api.snapshot_download(REPO, repo_type="dataset", local_dir=tmp_path / "a", allow_patterns="a/*")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "a").iterdir()} == {
        "0.bin": files["a/0.bin"],
        "1.bin": files["a/1.bin"],
    }
    assert not (tmp_path / "a" / "b").exists()
    assert len(hub.seen("GET", "/content/")) == 2


@pytest.mark.skipif(not hasattr(HfApi, "upload_large_folder"), reason="from version 2 on the client has no upload_large_folder")
def test_a_large_folder_is_uploaded_in_several_commits(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    files = {f"{number % 7}/{number}.{'bin' if number % 3 else 'txt'}": noise(500, number) for number in range(60)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    upload = getattr(api, "upload_large_folder")  # noqa: B009 - unknown to the types of version 2
    with pytest.warns(FutureWarning, match="deprecated|DEPRECATED"):
        upload(repo_id=REPO, repo_type="dataset", folder_path=tmp_path, print_report=False, num_workers=4)
    assert written(hub) == files


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_a_large_file_goes_up_in_parts(hub: Hub, api: HfApi, tmp_path: Path, kind: str) -> None:
    hub.limits.part_bytes = 100_000
    content = noise(950_001)
    (tmp_path / "large.bin").write_bytes(content)
    with (tmp_path / "large.bin").open("rb") as file:
        source: Any = {"path": tmp_path / "large.bin", "bytes": content, "file": file}[kind]
        api.upload_file(path_or_fileobj=source, path_in_repo="large.bin", repo_id=REPO, repo_type="dataset")
    assert written(hub) == {"large.bin": content}
    parts = hub.seen("PUT")
    assert sorted(part.size for part in parts) == [50_001, *[100_000] * 9]
    assert {part.host for part in parts} == {"storage"}
    assert len(hub.seen("POST", "complete_multipart")) == len(hub.seen("POST", "objects/verify")) == 1
    assert download(api, "large.bin") == content


def test_what_is_there_is_not_sent_again(hub: Hub, api: HfApi) -> None:
    content = noise(10_000)
    first = commit(api, add("a.bin", content), add("a.txt", b"text"))
    commit(api, add("b.bin", content))
    assert written(hub) == {"a.bin": content, "a.txt": b"text", "b.bin": content}
    assert len(hub.seen("PUT")) == 1
    # A repository has its own objects.
    api.create_repo("tester/other", repo_type="dataset")
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id="tester/other", repo_type="dataset")
    assert len(hub.seen("PUT")) == 2
    # Files that are as they were make no commit.
    before = len(hub.seen("POST", "/commit/"))
    again = commit(api, add("a.bin", content), add("a.txt", b"text"))
    assert len(hub.seen("POST", "/commit/")) == before
    assert again.oid == hub.log(REPO)[0].id != first.oid


def test_many_files_are_sent_first_and_committed_then(hub: Hub, api: HfApi) -> None:
    files = {f"blobs/{number:03}.bin": noise(64, number) for number in range(300)}
    operations = [add(path, content) for path, content in files.items()]
    api.preupload_lfs_files(REPO, operations, repo_type="dataset")
    assert len(hub.seen("PUT")) == 300
    assert len(hub.seen("POST", "/preupload/")) == len(hub.seen("POST", "objects/batch")) == 2  # of at most 256 each
    assert all(operation.path_or_fileobj == b"" for operation in operations)
    assert written(hub) == {}
    commit(api, *operations)
    assert written(hub) == files
    assert len(hub.seen("PUT")) == 300
    assert [entry.title for entry in hub.log(REPO)] == ["a change", "initial commit"]


def test_ignored_files_stay_away(hub: Hub, api: HfApi) -> None:
    commit(api, add(".gitignore", b"*.tmp\n!keep.tmp\nbuild/\n"), add("a.tmp", b"1"), add("b.txt", b"2"))
    commit(api, add("keep.tmp", b"3"), add("build/x.bin", noise(10)), add("sub/c.tmp", noise(10)))
    assert written(hub).keys() == {".gitignore", "b.txt", "keep.tmp"}
    assert hub.seen("PUT") == []


# Commits.


def test_a_commit_adds_copies_and_deletes(hub: Hub, api: HfApi) -> None:
    large = noise(5000)
    files = {"a.txt": b"a", "a.bin": large, "old/1": b"1", "old/deep/2": b"2", "older/3": b"3", "gone.txt": b"x"}
    commit(api, *(add(path, content) for path, content in files.items()))
    done = commit(
        api,
        CommitOperationCopy(src_path_in_repo="a.bin", path_in_repo="copy/b.bin"),
        CommitOperationCopy(src_path_in_repo="a.txt", path_in_repo="copy/b.txt"),
        CommitOperationDelete(path_in_repo="a.bin"),
        CommitOperationDelete(path_in_repo="old/"),
        CommitOperationDelete(path_in_repo="gone.txt"),
        add("a.txt", b"changed"),
    )
    assert written(hub) == {"a.txt": b"changed", "older/3": b"3", "copy/b.bin": large, "copy/b.txt": b"a"}
    assert len(hub.seen("PUT")) == 1
    newest = hub.log(REPO)[0]
    assert (newest.id, newest.title, newest.message, newest.user) == (done.oid, "a change", "of files", "tester")
    assert done.repo_url.repo_id == REPO
    # A copy from an older revision.
    first = hub.log(REPO)[1].id
    commit(api, CommitOperationCopy(src_path_in_repo="gone.txt", path_in_repo="gone.txt", src_revision=first))
    assert written(hub)["gone.txt"] == b"x"


def test_deleting_by_the_shorter_calls(hub: Hub, api: HfApi) -> None:
    commit(api, *(add(path, b"x") for path in ("a.txt", "b/1.txt", "b/2.txt", "c.txt", "d.txt")))
    api.delete_file("a.txt", REPO, repo_type="dataset")
    api.delete_folder("b", REPO, repo_type="dataset")
    assert written(hub).keys() == {"c.txt", "d.txt"}
    api.delete_files(REPO, ["c*"], repo_type="dataset")
    assert written(hub).keys() == {"d.txt"}


@pytest.mark.parametrize("path", ["missing.txt", "missing/"])
def test_what_is_not_there_cannot_be_deleted(hub: Hub, api: HfApi, path: str) -> None:
    with pytest.raises(EntryNotFoundError):
        commit(api, add("a.txt", b"not added either"), CommitOperationDelete(path_in_repo=path))
    assert written(hub) == {}


def test_a_commit_on_an_old_head_is_refused(hub: Hub, api: HfApi) -> None:
    head = api.repo_info(REPO, repo_type="dataset").sha
    assert head is not None
    commit(api, add("a.txt", b"1"), parent=head)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, add("a.txt", b"2"), parent=head)
    assert caught.value.response.status_code == 412
    assert written(hub) == {"a.txt": b"1"}
    commit(api, add("a.txt", b"2"), parent=hub.log(REPO)[0].id[:7])
    assert written(hub) == {"a.txt": b"2"}


def test_one_of_many_commits_on_the_same_head_wins(hub: Hub, api: HfApi) -> None:
    head = api.repo_info(REPO, repo_type="dataset").sha
    barrier = threading.Barrier(8)
    statuses = []

    def work(number: int) -> None:
        barrier.wait()
        try:
            commit(api, add("winner.txt", str(number).encode()), parent=head)
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, *[412] * 7]
    assert len(hub.log(REPO)) == 2


def test_a_pull_request_is_refused(hub: Hub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(REPO, [add("a.txt", b"a")], commit_message="m", repo_type="dataset", create_pr=True)
    assert caught.value.response.status_code == 403
    assert written(hub) == {}


# Revisions.


def test_branches_tags_and_commits_name_revisions(hub: Hub, api: HfApi) -> None:
    first = commit(api, add("a.txt", b"1")).oid
    second = commit(api, add("a.txt", b"2")).oid
    api.create_branch(REPO, branch="feature/x", revision=first, repo_type="dataset")
    api.create_tag(REPO, tag="v1", revision=first, tag_message="the first", repo_type="dataset")
    api.create_tag(REPO, tag="v2", repo_type="dataset")
    third = commit(api, add("a.txt", b"3"), revision="feature/x").oid
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {ref.name: (ref.ref, ref.target_commit) for ref in refs.branches} == {
        "main": ("refs/heads/main", second),
        "feature/x": ("refs/heads/feature/x", third),
    }
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first, "v2": second}
    for revision, content in (("main", b"2"), ("feature/x", b"3"), ("v1", b"1"), (first, b"1"), (third, b"3")):
        assert download(api, "a.txt", revision=revision) == content
        assert api.repo_info(REPO, repo_type="dataset", revision=revision).sha is not None
    assert [entry.id for entry in hub.log(REPO, "feature/x")][:2] == [third, first]
    api.delete_branch(REPO, branch="feature/x", repo_type="dataset")
    api.delete_tag(REPO, tag="v1", repo_type="dataset")
    assert not api.revision_exists(REPO, "feature/x", repo_type="dataset")
    assert not api.revision_exists(REPO, "v1", repo_type="dataset")
    assert api.revision_exists(REPO, third, repo_type="dataset")  # a commit stays


def test_a_name_is_given_once(api: HfApi) -> None:
    api.create_branch(REPO, branch="b", repo_type="dataset")
    api.create_tag(REPO, tag="t", repo_type="dataset")
    for again in (api.create_branch, api.create_tag):
        name: dict[str, Any] = {"branch": "b"} if again == api.create_branch else {"tag": "t"}
        with pytest.raises(HfHubHTTPError) as caught:
            again(REPO, repo_type="dataset", **name)
        assert caught.value.response.status_code == 409
        again(REPO, repo_type="dataset", exist_ok=True, **name)


def test_revisions_that_are_not_there(api: HfApi) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: api.repo_info(REPO, repo_type="dataset", revision="no"),
        lambda: tree(api, revision="no"),
        lambda: download(api, "a.txt", revision="no"),
        lambda: commit(api, add("a.txt", b"a"), revision="no"),
        lambda: api.create_branch(REPO, branch="b", revision="no", repo_type="dataset"),
        lambda: api.create_tag(REPO, tag="t", revision="no", repo_type="dataset"),
        lambda: api.delete_branch(REPO, branch="no", repo_type="dataset"),
        lambda: api.delete_tag(REPO, tag="no", repo_type="dataset"),
        lambda: list(api.list_repo_commits(REPO, repo_type="dataset", revision="0" * 40)),
    ]
    for attempt in attempts:
        with pytest.raises(RevisionNotFoundError):
            attempt()


def test_only_a_branch_takes_commits_and_main_stays(api: HfApi) -> None:
    api.create_tag(REPO, tag="t", repo_type="dataset")
    for revision in ("t", commit(api, add("a.txt", b"a")).oid):
        with pytest.raises(BadRequestError):
            commit(api, add("b.txt", b"b"), revision=revision)
    with pytest.raises(BadRequestError):
        api.delete_branch(REPO, branch="main", repo_type="dataset")


def test_the_log_comes_in_pages(hub: Hub, api: HfApi) -> None:
    hub.limits.commits_page = 3
    oids = [commit(api, add("a.txt", bytes([65 + number]))).oid for number in range(7)]
    log = api.list_repo_commits(REPO, repo_type="dataset")
    assert [entry.commit_id for entry in log[:-1]] == oids[::-1]
    assert [log[0].title, log[0].message, log[0].authors] == ["a change", "of files", ["tester"]]
    assert len(hub.seen("GET", "/commits/")) == 3
