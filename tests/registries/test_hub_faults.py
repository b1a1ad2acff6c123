"""What the Hub of the tests refuses, what goes wrong in it on demand, and what the published client does then by itself.

Where the client tries again it waits, a second at first: the tests that say so are slow for that reason.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from huggingface_hub.utils._http import parse_ratelimit_headers
from tests.hub.limits import Quota
from tests.registries.hub_calls import ATTRIBUTES, REPO, add, commit, download, noise, tree, written

if TYPE_CHECKING:
    from tests.hub import Hub

TEXT = b"text\n" * 20


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """A client, and a Hub with one repository that has a text and a large file."""
    hub.write(REPO, {"old.txt": TEXT, "old.bin": noise(200_000)})
    return HfApi(endpoint=hub.url, token=hub.token())


def post(hub: Hub, path: str, body: bytes, kind: str = "application/json") -> Any:
    headers = {"Authorization": f"Bearer {hub.token()}", "Content-Type": kind}
    return get_session().post(hub.url + path, content=body, headers=headers)


def lost_connection() -> type[Exception]:
    """What the HTTP library of the client raises; it is another one from version 2 on."""
    library = type(get_session()).__module__.partition(".")[0]
    error: type[Exception] = sys.modules[library].RemoteProtocolError
    return error


def refused(hub: Hub, status: int) -> None:
    """The last request was refused and has changed nothing."""
    assert hub.requests[-1].status == status
    assert written(hub) == {"old.txt": TEXT, "old.bin": noise(200_000)}
    assert len(hub.log(REPO)) == 2


# Refused by itself.


HEADER = {"key": "header", "value": {"summary": "by hand"}}


def line(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def inline(path: str, content: str = "x") -> dict[str, Any]:
    return line("file", path=path, content=content, encoding="utf-8")


UNKNOWN = hashlib.sha256(b"unknown").hexdigest()
KNOWN = hashlib.sha256(noise(200_000)).hexdigest()
BAD_COMMITS = {
    "no header": [inline("a")],
    "no summary": [line("header", description="x"), inline("a")],
    "unknown line": [HEADER, line("copyFile", path="a", srcPath="old.txt")],
    "unknown object": [HEADER, line("lfsFile", path="a", algo="sha256", oid=UNKNOWN, size=7)],
    "wrong size": [HEADER, line("lfsFile", path="a", algo="sha256", oid=KNOWN, size=7)],
    "not base64": [HEADER, line("file", path="a", content="?", encoding="base64")],
    "large binary": [HEADER, inline("a", "\0" * 1_000_001)],
    "file as folder": [HEADER, inline("old.txt/a")],
    "folder as file": [HEADER, inline("a/b"), inline("a")],
    "half good": [HEADER, inline("good"), line("lfsFile", path="a", algo="sha256", oid=UNKNOWN, size=7)],
    **{f"path {path!r}": [HEADER, inline(path)] for path in ("", "/a", "a//b", "../a", "a/./b", ".git/config", "a/")},
}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("name", BAD_COMMITS)
def test_a_bad_commit_changes_nothing(hub: Hub, name: str) -> None:
    body = b"".join(json.dumps(item).encode() + b"\n" for item in BAD_COMMITS[name])
    post(hub, f"/api/datasets/{REPO}/commit/main", body, "application/x-ndjson")
    refused(hub, 400)


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(("kind", "body"), [("application/x-ndjson", b"{"), ("application/json", json.dumps(HEADER).encode())])
def test_a_commit_has_its_own_form(hub: Hub, kind: str, body: bytes) -> None:
    post(hub, f"/api/datasets/{REPO}/commit/main", body, kind)
    refused(hub, 400)


def test_a_commit_is_not_for_large_contents(hub: Hub, api: HfApi) -> None:
    text = b"long text\n" * 150_000
    commit(api, add("long.txt", text))
    assert written(hub).pop("long.txt") == text
    commits = len(hub.log(REPO))
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, *(add(f"{number}.txt", text) for number in range(6)))
    assert caught.value.response.status_code == 413
    assert len(hub.log(REPO)) == commits


def test_a_folder_has_so_many_entries(hub: Hub, api: HfApi) -> None:
    hub.limits.folder_entries = 4
    commit(api, *(add(f"a/{number}/x", b"x") for number in range(4)))
    for path in ("a/more.txt", "a/4/x", "more.txt"):
        with pytest.raises(BadRequestError, match="too many files per directory"):
            commit(api, add(path, b"x"))
    commit(api, add("a/2/y", b"y"))
    assert len(hub.log(REPO)) == 4


@pytest.mark.usefixtures("api")
def test_a_call_asks_for_so_many_files(hub: Hub) -> None:
    files = [{"path": f"{number}.txt", "sample": "", "size": 0} for number in range(257)]
    url = f"/api/datasets/{REPO}/preupload/main"
    assert post(hub, url, json.dumps({"files": files[:256]}).encode()).status_code == 200
    assert post(hub, url, json.dumps({"files": files}).encode()).status_code == 400


def begin(hub: Hub, content: bytes) -> dict[str, Any]:
    """Asks where to upload a content."""
    item = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [item], "hash_algo": "sha256"}
    answer = post(hub, f"/datasets/{REPO}.git/info/lfs/objects/batch", json.dumps(body).encode()).json()
    actions: dict[str, Any] = answer["objects"][0]["actions"]
    return actions


def verify(hub: Hub, content: bytes) -> int:
    body = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    status: int = post(hub, f"/datasets/{REPO}.git/info/lfs/objects/verify", json.dumps(body).encode()).status_code
    return status


@pytest.mark.usefixtures("api")
def test_an_upload_is_what_was_announced(hub: Hub) -> None:
    content = noise(1000, 1)
    url = begin(hub, content)["upload"]["href"]
    session = get_session()
    assert verify(hub, content) == 404
    for wrong in (content[:-1], content + b"x", noise(1000, 2), b""):
        assert session.put(url, content=wrong).status_code == 400
    assert session.put(url, content=iter([content])).status_code == 501  # without a length
    assert session.put(url[:-1] + "x", content=content).status_code == 403
    assert session.put(url, content=content, headers={"Authorization": f"Bearer {hub.token()}"}).status_code == 400
    assert verify(hub, content) == 404
    assert session.put(url, content=content).status_code == 200
    assert verify(hub, content) == 200


@pytest.mark.usefixtures("api")
def test_parts_are_what_was_announced(hub: Hub) -> None:
    hub.limits.part_bytes = 400
    content = noise(1000, 1)
    session = get_session()

    def put(content: bytes, *sizes: int) -> tuple[str, list[str]]:
        upload = begin(hub, noise(1000, 1))["upload"]
        assert upload["header"].pop("chunk_size") == "400"
        etags, start = [], 0
        for (_, url), size in zip(sorted(upload["header"].items()), sizes, strict=True):
            reply = session.put(url, content=content[start : start + size])
            etags.append(reply.headers.get("ETag", str(reply.status_code)))
            start += size
        return upload["href"], etags

    def complete(url: str, etags: list[str]) -> int:
        parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
        body = {"oid": hashlib.sha256(content).hexdigest(), "parts": parts}
        status: int = post(hub, url.removeprefix(hub.url), json.dumps(body).encode()).status_code
        return status

    assert put(content, 400, 300, 300)[1][1:] == ["400", "400"]
    url, etags = put(content, 400, 400, 200)
    assert complete(url, etags[:2]) == complete(url, etags[::-1]) == complete(url, ['"x"', *etags[1:]]) == 400
    assert complete(url[:-1] + "x", etags) == 403
    assert complete(*put(noise(1000, 2), 400, 400, 200)) == 400
    assert verify(hub, content) == 404
    assert complete(url, etags) == 200
    assert verify(hub, content) == 200


# Rates.


def test_every_reply_tells_what_is_left(hub: Hub, api: HfApi) -> None:
    hub.limits.quotas["api"] = Quota(2, 300)
    url, headers = f"{hub.url}/api/whoami-v2", {"Authorization": f"Bearer {hub.token()}"}
    for expected in ((200, 1), (200, 0), (429, 0)):
        reply = get_session().get(url, headers=headers)
        info = parse_ratelimit_headers(reply.headers)
        assert info is not None
        assert (reply.status_code, info.remaining) == expected
        assert (info.resource_type, info.limit, info.window_seconds) == ("api", 2, 300)
        assert 0 < info.reset_in_seconds <= 300
        assert reply.headers.get("Retry-After") == (str(info.reset_in_seconds) if reply.status_code == 429 else None)
    with pytest.raises(HfHubHTTPError, match="Too Many Requests") as caught:
        api.repo_info(REPO, repo_type="dataset")
    assert caught.value.response.status_code == 429
    assert download(api, "old.txt") == TEXT  # reading is counted apart


def test_the_client_waits_for_the_next_window(hub: Hub, api: HfApi) -> None:
    hub.limits.quotas["api"] = Quota(1, 1)
    hub.limits.tree_page = 2
    assert tree(api).keys() == {ATTRIBUTES, "old.txt", "old.bin"}
    assert [seen.status for seen in hub.seen("GET", "/tree/")] == [200, 429, 200]


# Commits that fail.


@pytest.mark.parametrize("status", [409, 412, 429, 500, 503])
def test_a_refused_commit_is_the_callers_to_repeat(hub: Hub, api: HfApi, status: int) -> None:
    hub.fault("POST", "/commit/", status=status, headers={"Retry-After": "0"})
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, add("a.txt", b"a"))
    assert caught.value.response.status_code == status
    refused(hub, status)
    commit(api, add("a.txt", b"a"))
    assert written(hub)["a.txt"] == b"a"


def test_a_commit_that_was_made_may_be_told_as_failed(hub: Hub, api: HfApi) -> None:
    hub.fault("POST", "/commit/", status=500, applied=True)
    head = hub.log(REPO)[0].id
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, add("a.txt", b"a"), parent=head)
    assert caught.value.response.status_code == 500
    assert written(hub)["a.txt"] == b"a"
    assert len(hub.seen("POST", "/commit/")) == 1
    # Whoever repeats it meets the commit that was made: the head has moved.
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, add("b.txt", b"b"), parent=head)
    assert caught.value.response.status_code == 412


@pytest.mark.parametrize("applied", [False, True])
def test_a_connection_is_lost_during_a_commit(hub: Hub, api: HfApi, applied: bool) -> None:
    hub.fault("POST", "/commit/", drop=True, applied=applied)
    with pytest.raises(lost_connection()):
        commit(api, add("a.txt", b"a"))
    assert ("a.txt" in written(hub)) == applied
    assert [seen.status for seen in hub.seen("POST", "/commit/")] == [None]


def test_a_fault_strikes_where_and_as_often_as_told(hub: Hub, api: HfApi) -> None:
    hub.fault("POST", "/commit/main", status=503, skip=1, times=2)
    statuses = []
    for number in range(5):
        try:
            commit(api, add("a.txt", str(number).encode()))
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)
    assert statuses == [200, 503, 503, 200, 200]


# Uploads that fail, which the client repeats.


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("POST", "/preupload/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST", "objects/batch", {"status": 500}),
        ("PUT", "/upload/.*/2", {"status": 500}),
        ("PUT", "/upload/.*/3", {"drop": True, "applied": True}),
        ("POST", "complete_multipart", {"status": 503}),
        ("POST", "objects/verify", {"drop": True}),
    ],
)
def test_the_client_repeats_steps_of_an_upload(hub: Hub, api: HfApi, method: str, path: str, how: dict[str, Any]) -> None:
    hub.limits.part_bytes = 100_000
    content = noise(250_000, 1)
    fault = hub.fault(method, path, **how)
    commit(api, add("new.bin", content))
    assert written(hub)["new.bin"] == content
    assert fault.times == 0
    assert [seen.status for seen in hub.seen(method, path)] == [how.get("status"), 200]


def test_a_repeated_completion_finds_nothing_to_complete(hub: Hub, api: HfApi) -> None:
    """The client does not look whether a completion whose reply was lost has been done; a new upload does."""
    hub.limits.part_bytes = 100_000
    content = noise(250_000, 1)
    hub.fault("POST", "complete_multipart", status=500, applied=True)
    with pytest.raises(RuntimeError) as caught:
        commit(api, add("new.bin", content))
    assert isinstance(caught.value.__cause__, HfHubHTTPError)
    assert [seen.status for seen in hub.seen("POST", "complete_multipart")] == [500, 404]
    commit(api, add("new.bin", content))
    assert written(hub)["new.bin"] == content
    assert len(hub.seen("PUT")) == 3


# Downloads that fail.


@pytest.mark.parametrize(("step", "resumed"), [(50_000, "bytes=100000-"), (constants.DOWNLOAD_CHUNK_SIZE, None)])
def test_a_cut_download_is_resumed(hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch, step: int, resumed: str | None) -> None:
    """After the last whole step that came: with the 10 MiB that the client takes, a smaller file begins again."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", step)
    hub.fault("GET", "/content/", truncate=120_000)
    assert download(api, "old.bin") == noise(200_000)
    assert [seen.headers.get("range") for seen in hub.seen("GET", "/content/")] == [None, resumed]


def test_a_slow_download_arrives(hub: Hub, api: HfApi) -> None:
    hub.fault("GET", "/content/", drip=(50_000, 0.05))
    assert download(api, "old.bin") == noise(200_000)


def test_the_client_believes_the_etag(hub: Hub, api: HfApi) -> None:
    """It is a name for the cache, not checked against the bytes; and a wrong one is not the name that the file has later."""
    wrong = "0" * 64
    hub.fault("HEAD", "/resolve/", headers={"ETag": f'"{wrong}"', "X-Linked-Etag": f'"{wrong}"'})
    path = Path(api.hf_hub_download(REPO, "old.bin", repo_type="dataset"))
    assert (path.resolve().name, path.read_bytes()) == (wrong, noise(200_000))
    hub.write(REPO, {"x.txt": b"x"})
    path = Path(api.hf_hub_download(REPO, "old.bin", repo_type="dataset"))
    assert (path.resolve().name, path.read_bytes()) == (KNOWN, noise(200_000))


def test_the_client_does_not_check_what_it_downloads(hub: Hub, api: HfApi) -> None:
    damaged = bytes(200_000)
    hub.objects.path(KNOWN).write_bytes(damaged)
    assert download(api, "old.bin") == damaged
    hub.objects.path(KNOWN).write_bytes(damaged[:1000])
    with pytest.raises(OSError, match="should be of size 200000"):
        download(api, "old.bin", force_download=True)


def test_an_unanswered_question_is_repeated_where_the_client_does(hub: Hub, api: HfApi) -> None:
    hub.limits.tree_page = 2
    hub.fault("GET", "/tree/", drop=True, skip=1)
    assert tree(api).keys() == {ATTRIBUTES, "old.txt", "old.bin"}
    hub.fault("GET", "/refs", status=500)
    with pytest.raises(HfHubHTTPError):
        api.list_repo_refs(REPO, repo_type="dataset")


# Xet.


def test_there_is_no_xet_here(hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Xet on, the client asks for its token and falls back to nothing: so it is off in all other tests."""
    pytest.importorskip("hf_xet", reason="the client uploads by Xet only where hf_xet is installed")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(ConnectionError, match="xet-write-token"):
        commit(api, CommitOperationAdd(path_in_repo="a.bin", path_or_fileobj=noise(10)))
    refused(hub, 404)
