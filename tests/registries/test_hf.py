"""Images in dataset repositories of the Hub of the tests: what is asked, what lies there, and who is told what."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi, constants
from tests.hub.limits import Quota
from tests.registries.hf_places import REF, REPO, HfPlace
from tests.registries.programs import needs_reference
from tests.registries.test_contract import assert_nothing_is_visible, everything
from tests.servers.scripted import Peer, scripted

import pfimg
from pfimg.registries.base import Traffic
from pfimg.registries.connections import Patience
from pfimg.registries.hf import HfRegistry, repository, transport
from pfimg.registries.hf.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub import Hub


@pytest.fixture
def place(hub: Hub) -> HfPlace:
    return HfPlace(hub)


def asked(hub: Hub, method: str = "", path: str = "") -> list[str]:
    """What was asked since the last time, without queries and the names of repositories."""
    found = [f"{seen.method} {seen.target.partition('?')[0]}" for seen in hub.requests if seen.method.startswith(method)]
    hub.requests.clear()
    return [line for line in found if re.search(path, line)]


# What lies there.


def test_a_new_repository_is_private_unless_public_is_asked_for(hub: Hub, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    assert hub.repository(REPO).private
    manifest = store.get_manifest(image)
    registry = pfimg.registries.open("hf://tester/open", public=True)
    registry.push("hf://tester/open", manifest, store)
    assert not hub.repository("tester/open").private
    HfRegistry(public=True).push(REF, manifest, store)
    HfRegistry().push("hf://tester/open", manifest, store)
    assert (hub.repository(REPO).private, hub.repository("tester/open").private) == (True, False)


def test_an_image_comes_with_one_commit_in_which_no_content_lies(
    hub: Hub, place: HfPlace, store: pfimg.PfStore, image: str
) -> None:
    sent = pfimg.push(store, image, REF)
    first, last, *_ = reversed(hub.log(REPO))
    assert [commit.title for commit in hub.log(REPO)] == [f"Image {image[:19]}", first.title]
    assert {path for path, file in last.files.items() if not file.sha256} == {
        ".gitattributes",
        "manifest.json",
        "manifest.json.sig",
    }
    assert place.files().keys() == {
        "manifest.json",
        "manifest.json.sig",
        *(pfimg.registries.base.blob_name(digest) for digest in everything(store, image)),
    }
    # Small frames of text go where large files go too.
    commits = hub.seen("POST", "/commit/")
    assert commits[0].size < 4000 + 300 * sent.sent
    lines = asked(hub)
    assert len(lines) == 2 * sent.sent + 7
    again = pfimg.push(store, image, REF)
    assert (again.sent, len(hub.log(REPO))) == (0, 2)
    assert not [line for line in asked(hub) if "/commit/" in line or "lfs" in line]


def test_foreign_files_are_left_alone(hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    foreign = {
        "README.md": b"# Mine\n",
        ".gitignore": b"*\n",
        ".gitattributes": b"raw/* -filter\n",
        "data/x.bin": bytes(range(256)) * 10,
        "blobs/note.txt": b"not a blob",
    }
    hub.write(REPO, foreign)
    pfimg.push(store, image, REF)
    found = hub.files(REPO)
    assert {path: found[path] for path in foreign} == foreign
    assert all(file.sha256 for path, file in hub.log(REPO)[0].files.items() if path.endswith(".zst"))
    pfimg.pull(REF, other)
    assert everything(other, image) == everything(store, image)


def test_named_images_share_a_branch(
    hub: Hub, place: HfPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    images = {name: make_image(version) for version, name in enumerate(["one", "two", ""])}
    for name, image in images.items():
        ref = f"{REF}#{name}" if name else REF
        assert pfimg.push(store, image, ref).ref == ref
    assert json.loads(place.files()["pfimg.json"]) == {"pfimg": 1, "digest": "sha256", "features": ["names"]}
    assert pfimg.list_images(f"{REF}#any") == [REF, f"{REF}#one", f"{REF}#two"]
    for name, image in images.items():
        assert pfimg.pull(f"{REF}#{name}" if name else REF, other).image == image
    assert not pfimg.exists(f"{REF}#three")
    assert len(hub.log(REPO)) == 4


def test_large_images_are_packed_by_themselves(
    place: HfPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.HfTransport, "packs_above", 10)
    assert pfimg.push(store, image, REF).ref == f"{REF}#default"
    assert not [path for path in place.files() if path.startswith("blobs")]
    assert "manifest.json" not in place.files()
    assert pfimg.pull(REF, other).image == image
    monkeypatch.setattr(transport.HfTransport, "packs_above", 1000)
    assert pfimg.push(store, image, REF).ref == REF
    assert "manifest.json" in place.files()


def test_many_blobs_take_several_commits_and_the_image_shows_with_the_last(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_FIRST_PACE", 20)
    image = make_image(pages=200)
    sent = pfimg.push(store, image, REF)
    commits = list(reversed(hub.log(REPO)))
    counts = [len(commit.files) for commit in commits]
    assert [after - before for before, after in pairwise(counts)][:4] == [20, 40, 80, 160]
    assert ["manifest.json" in commit.files for commit in commits] == [False] * (len(commits) - 1) + [True]
    assert counts[-1] == sent.sent + 3
    pfimg.pull(REF, other)
    assert everything(other, image) == everything(store, image)


# Branches, tags and commits.


def test_a_branch_is_made_and_has_its_own_image_only(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, REF)
    assert not pfimg.exists(f"{REF}:v2")
    assert pfimg.push(store, second, f"{REF}:v2").ref == f"{REF}:v2"
    # What both have was not sent again, though the branch did not have it.
    assert len(hub.seen("PUT")) == len(everything(store, first).keys() | everything(store, second).keys())
    blobs = {path for path in hub.files(REPO, "v2") if path.startswith("blobs")}
    assert blobs == {pfimg.registries.base.blob_name(digest) for digest in everything(store, second)}
    assert [commit.title for commit in hub.log(REPO, "v2")] == [f"Image {second[:19]}", "initial commit"]
    assert pfimg.pull(REF, other).image == first
    assert pfimg.pull(f"{REF}:v2", other).image == second
    assert pfimg.list_images(REF) == [REF, f"{REF}:v2"]
    assert pfimg.push(store, first, f"{REF}:v2").sent == 0
    assert pfimg.pull(f"{REF}:v2", other).image == first


def test_a_repository_may_begin_with_a_branch(hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, f"{REF}:dev#mine")
    assert hub.files(REPO).keys() == {".gitattributes"}
    assert pfimg.list_images(f"{REF}:dev") == [f"{REF}:dev#mine"]
    assert pfimg.pull(f"{REF}:dev#mine", other).image == image


def test_tags_and_commits_are_for_reading(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, REF)
    old = hub.log(REPO)[0]
    hub.repository(REPO).tags["v1"] = old
    pfimg.push(store, second, REF)
    for ref in (f"{REF}:v1", f"{REF}@v1", f"{REF}@{old.id}", f"{REF}:main@{old.id}"):
        assert pfimg.exists(ref)
        assert pfimg.pull(ref, other).image == first
    assert pfimg.pull(f"{REF}@main", other).image == second
    assert pfimg.list_images(f"{REF}:v1") == [f"{REF}:v1", REF]
    with pytest.raises(pfimg.BadRef, match="v1 is a tag"):
        pfimg.push(store, second, f"{REF}:v1")
    hub.requests.clear()
    with pytest.raises(pfimg.RegistryError, match="a revision is for reading"):
        pfimg.push(store, second, f"{REF}@{old.id}")
    assert hub.requests == []
    assert hub.repository(REPO).tags["v1"] is old


def test_a_pull_reads_one_commit_whatever_comes_meanwhile(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image()
    pfimg.push(store, image, REF)

    def empty(event: pfimg.Progress) -> None:
        files = [path for path in hub.files(REPO) if not path.startswith(".")]
        if files and event.total < 10:  # the documents are here, and tell what else to fetch
            hub.write(REPO, dict.fromkeys(files))

    assert pfimg.pull(REF, other, progress=empty).image == image
    assert everything(other, image) == everything(store, image)
    assert not pfimg.exists(REF)


# Others.


def test_the_published_client_gets_the_same_files(
    hub: Hub, place: HfPlace, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, REF)
    root = tmp_path / "snapshot"
    HfApi(hub.url).snapshot_download(REPO, repo_type="dataset", local_dir=root)
    assert {path: (root / path).read_bytes() for path in place.files()} == place.files()
    assert pfimg.pull(f"file://{root}", other).image == image
    hub.create("datasets", "tester", "mirror", private=True)
    HfApi(hub.url).upload_folder(repo_id="tester/mirror", repo_type="dataset", folder_path=root, ignore_patterns=".*")
    assert pfimg.pull("hf://tester/mirror", pfimg.PfStore.open(tmp_path / "third")).image == image


@pytest.mark.reference
@needs_reference
def test_the_reference_reads_what_is_pushed_and_the_other_way_round(
    hub: Hub, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image()
    theirs = tmp_path / "theirs"

    def pf(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["pf", "--store", *arguments], capture_output=True, check=False)

    pfimg.push(store, image, REF)
    assert pf(theirs, "pull", REF).returncode == 0
    assert everything(pfimg.PfStore.open(theirs), image) == everything(store, image)
    assert pf(store.root, "push", image, "hf://tester/theirs").returncode == 0
    assert not hub.repository("tester/theirs").private  # which is why ours are
    assert pfimg.pull("hf://tester/theirs", other).image == image
    packed = pfimg.push(store, image, "hf://tester/packed", layout="packed").ref
    assert pf(theirs, "pull", packed.partition("#")[0]).returncode != 0

    # Contents of more than a megabyte are refused in a commit, where the reference puts them.
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(random.Random(1).randbytes(2 << 20))
    large = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "large")
    assert pf(store.root, "push", large, "hf://tester/large").returncode != 0
    pfimg.push(store, large, "hf://tester/large")
    assert pf(theirs, "pull", "hf://tester/large").returncode == 0


# What is asked.


def test_existence_costs_one_request_and_an_absent_image_two(hub: Hub, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    hub.requests.clear()
    assert pfimg.exists(REF)
    assert asked(hub) == [f"HEAD /datasets/{REPO}/resolve/main/manifest.json"]
    assert not pfimg.exists("hf://tester/nothing")
    assert len(asked(hub)) == 2
    assert not pfimg.exists(f"{REF}:nothing#x")
    assert len(asked(hub)) == 1


def test_a_pull_asks_for_what_is_missing_and_little_else(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, REF)
    hub.requests.clear()
    blobs = pfimg.pull(REF, other).fetched
    assert len(asked(hub)) == 6 + 2 * blobs
    pfimg.pull(REF, other)
    assert len(asked(hub)) == 6
    ref = pfimg.push(store, image, f"{REF}:packed", layout="packed").ref
    hub.requests.clear()
    pfimg.pull(ref, pfimg.PfStore.open(other.root.with_name("third")))
    assert len(asked(hub)) < 16


def test_many_blobs_are_looked_up_by_a_listing(hub: Hub, store: pfimg.PfStore, make_image: Callable[..., str]) -> None:
    hub.limits.tree_page = 100
    image = make_image(pages=400)
    first = pfimg.push(store, image, REF)
    assert first.sent > repository.PATHS
    hub.requests.clear()
    lost = sorted(path for path in hub.files(REPO) if path.startswith("blobs"))[::50]
    hub.write(REPO, dict.fromkeys(lost))
    again = pfimg.push(store, image, REF)
    # The Hub still has their content.
    assert (again.sent, again.skipped) == (0, first.sent)
    assert not set(lost) - hub.files(REPO).keys()
    lines = asked(hub)
    listings, questions = (len([line for line in lines if word in line]) for word in ("/tree/", "paths-info"))
    assert (listings, questions) == (4, 1)


def test_the_hub_is_asked_again_when_it_says(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that the slowest machine asks for more.
    monkeypatch.setattr(hub.limits, "quotas", {"api": Quota(4, 3), "resolvers": Quota(15, 1)})
    pfimg.push(store, image, REF)
    pfimg.pull(REF, other)
    assert everything(other, image) == everything(store, image)
    assert 429 in {seen.status for seen in hub.requests}


# Who is told what.


def test_refusals_are_told_apart(hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    hub.write("other/private", {"x": b"x"})

    def code(work: Callable[[], object]) -> str:
        with pytest.raises(pfimg.BackendError) as caught:
            work()
        assert_nothing_is_visible(other)
        assert "hf_" not in str(caught.value)
        return caught.value.code

    def pull(ref: str = REF, **options: Any) -> Callable[[], object]:
        return lambda: pfimg.registries.open(ref, **options).pull(ref, other)

    def push(ref: str = REF, **options: Any) -> Callable[[], object]:
        return lambda: pfimg.registries.open(ref, **options).push(ref, store.get_manifest(image), store)

    assert code(pull("hf://tester/nothing")) == "no_repo"
    assert code(pull("hf://other/private")) == "no_repo"
    assert code(pull(f"{REF}:nothing")) == "no_revision"
    assert code(pull(token="hf_wrong")) == code(push(token="hf_wrong")) == "credentials"
    assert code(pull(token="hf_bad\nnews")) == "credentials"
    assert code(push(token=hub.token("tester", "read"))) == "forbidden"
    assert code(push("hf://other/new")) == "forbidden"
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset tester/agent is restricted."}
    hub.fault("GET", "/resolve/", status=403, headers=gated)
    assert code(pull()) == "gated"
    full = {"X-Error-Message": "Private repository storage limit reached, please upgrade"}
    hub.fault("POST", "lfs/objects/batch", status=403, headers=full)
    assert code(push(f"{REF}:new")) == "quota"
    hub.fault("GET", "/revision/", times=99, status=429)
    assert pfimg.exists(REF)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_and_one_that_does_not_answer(
    store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_PATIENCE", Patience(silence=0.5, window=0.5, attempts=2, pause=0.01))
    with scripted() as silent:
        silent.otherwise = Peer.silence
        for endpoint, code in {
            "http://127.0.0.1:1": "unreachable",
            "http://hub.invalid": "unreachable",
            silent.url: "timeout",
        }.items():
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            for work in (lambda: pfimg.exists(REF), lambda: pfimg.pull(REF, other), lambda: pfimg.push(store, image, REF)):
                with pytest.raises(pfimg.BackendError, match=re.escape(endpoint)) as caught:
                    work()
                assert caught.value.code == code
    assert_nothing_is_visible(other)
    # What the client itself asks for ends likewise.
    with pytest.raises(pfimg.BackendError) as caught:
        repository.Repository(REPO, Access.of(endpoint="http://127.0.0.1:1", token="hf_x"), Traffic()).create(public=False)
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)


def test_a_hub_that_is_not_to_be_asked_is_not(hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    hub.requests.clear()
    # The client reads the variable once, when it is imported.
    call = "import sys, pfimg\ntry: pfimg.exists(sys.argv[1])\nexcept pfimg.BackendError as error: print(error.code, error)"
    done = subprocess.run(
        [sys.executable, "-c", call, REF], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"offline HF_HUB_OFFLINE is set.*: unset it\n", done.stdout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for work in (lambda: pfimg.exists(REF), lambda: pfimg.pull(REF, other), lambda: pfimg.push(store, image, REF)):
            with pytest.raises(pfimg.BackendError, match="HF_HUB_OFFLINE is set") as caught:
                work()
            assert (caught.value.code, caught.value.retryable) == ("offline", False)
    assert hub.requests == []
    assert pfimg.pull(REF, other).image == image


def test_without_a_token_only_what_is_public_can_be_read(
    hub: Hub, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, REF)
    HfRegistry(public=True).push("hf://tester/open", store.get_manifest(image), store)
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    for work in (lambda: pfimg.exists(REF), lambda: pfimg.pull(REF, other), lambda: pfimg.push(store, image, REF)):
        with pytest.raises(pfimg.BackendError, match="HF_TOKEN") as caught:
            work()
        assert caught.value.code == "no_credentials"
    assert pfimg.pull("hf://tester/open", other).image == image
    with pytest.raises(pfimg.BackendError, match="HF_TOKEN"):
        pfimg.push(store, image, "hf://tester/open#other")
    assert {seen.method for seen in hub.requests} <= {"GET", "HEAD"} | {"POST"}
    assert not hub.seen("POST", "commit|create")


def test_a_token_is_not_sent_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    access = Access.of(endpoint="http://hub.example.org", token=None)
    assert (access.is_private, access.authorization("hub.example.org", 80)) == (False, "Bearer hf_secret")
    assert "hf_secret" not in repr(access)
    with pytest.raises(pfimg.BackendError, match="plain http"):
        access.check_writing("hf://a/b")
    assert access.authorization("elsewhere.example.org", 80) is None


def test_a_folder_that_is_full_is_named(hub: Hub, store: pfimg.PfStore, image: str) -> None:
    hub.limits.folder_entries = 3
    with pytest.raises(pfimg.BackendError, match="layout packed") as caught:
        pfimg.push(store, image, REF)
    assert caught.value.code == "full"
    assert not pfimg.exists(REF)
    hub.limits.folder_entries = 10_000
    pfimg.push(store, image, REF)
    assert pfimg.exists(REF)


def test_no_token_and_no_signed_address_is_shown(
    hub: Hub,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    image: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    names = ["", "httpx", "httpx2", "huggingface_hub", *logging.root.manager.loggerDict]
    for name in names:
        logger = logging.getLogger(name)
        if name.split(".")[0] in ("", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"):
            monkeypatch.setattr(logger, "propagate", True)
            caplog.set_level(logging.DEBUG, logger=name)
    hub.fault("PUT", "/upload/", status=503)
    hub.fault("POST", "/commit/", status=503)
    events: list[pfimg.Progress] = []
    report = pfimg.push(store, image, REF, progress=events.append)
    assert report.retries > 0
    pfimg.pull(REF, other, progress=events.append)
    shown = caplog.text + "".join(capfd.readouterr()) + repr(events) + repr(report) + repr(HfRegistry(hub.token()))
    assert hub.token() not in shown
    assert "signature=" not in shown
    assert "Retrying" not in shown
