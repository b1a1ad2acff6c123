"""What is in a repository: listed, read, and changed by commits."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from pathspec import GitIgnoreSpec
from tests.hub.api import next_page, timestamp
from tests.hub.messages import Refusal, Reply, content_reply, json_reply
from tests.hub.repos import Commit, Entry, File, Repo, check_folders, check_path, is_binary
from tests.hub.routes import HUB, PLACE, REPO, REVISION, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hub.state import State


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Refusal(400, "a content or sample is not base64") from None


@HUB("POST", f"{REPO}/preupload{REVISION}")
def preupload(call: Call) -> Reply:
    head, limits = call.repo(write=True).head(call.names["revision"]), call.state.limits
    body = call.request.json()
    files = body["files"]
    if len(files) > limits.preupload_files:
        raise Refusal(400, f"{len(files)} files: at most {limits.preupload_files} can be asked for in one call")
    ignored = body["gitIgnore"].splitlines() if "gitIgnore" in body else head.lines(".gitignore")
    ignore = GitIgnoreSpec.from_lines(ignored)
    told = []
    for file in files:
        path = check_path(file["path"])
        mode = head.upload_mode(path, file["size"], _decoded(file["sample"]), limits)
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": ignore.match_file(path)}
        old = head.files.get(path)
        # By this the client sees that a file has not changed.
        told.append(answer if old is None else answer | {"oid": old.etag})
    return json_reply({"files": told, "commitOid": head.id})


def _shown(entry: Entry, commit: Commit, *, expand: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "directory", "oid": entry.oid, "size": 0, "path": entry.path}
    if (file := entry.file) is not None:
        told |= {"type": "file", "size": file.size}
        if file.sha256:
            told["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    if expand:
        last = commit.last_change(entry.path)
        told["lastCommit"] = {"id": last.id, "title": last.title, "date": timestamp(last.date)}
        if entry.file is not None:
            told["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return told


@HUB("GET", f"{REPO}/tree{REVISION}(?:/(?P<path>.+))?")
def tree(call: Call) -> Reply:
    commit = call.repo().resolve(call.names["revision"])
    folder = call.names.get("path", "").strip("/")
    if folder and (folder not in commit.entries or commit.entries[folder].file is not None):
        raise Refusal(404, f"{folder}: no such folder", "EntryNotFound")
    prefix = f"{folder}/" if folder else ""
    expand, recursive, limits = call.request.flag("expand"), call.request.flag("recursive"), call.state.limits
    listed = [
        entry
        for path, entry in commit.entries.items()
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    ]
    start = int(call.request.query.get("cursor", ["0"])[0])
    stop = start + (limits.tree_page_expanded if expand else limits.tree_page)
    told = [_shown(entry, commit, expand=expand) for entry in listed[start:stop]]
    return json_reply(told, headers=next_page(call, cursor=stop) if stop < len(listed) else {})


@HUB("POST", f"{REPO}/paths-info{REVISION}")
def paths_info(call: Call) -> Reply:
    """What is at some paths, as far as there is something; the body is a form, or JSON."""
    commit = call.repo().resolve(call.names["revision"])
    if call.request.headers.get_content_type() == "application/json":
        body = call.request.json()
        paths, expand = body.get("paths", []), bool(body.get("expand"))
    else:
        form = parse_qs(call.request.body.read().decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    if len(paths) > call.state.limits.paths:
        raise Refusal(413, f"{len(paths)} paths: too many parameters")
    entries = [commit.entries[path] for path in dict.fromkeys(paths) if path in commit.entries]
    return json_reply([_shown(entry, commit, expand=expand) for entry in entries])


# What a line of a commit does to the files, by its key.
def _add_file(call: Call, repo: Repo, files: dict[str, File], value: dict[str, Any]) -> None:  # noqa: ARG001
    content = _decoded(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
    if len(content) > call.state.limits.inline_binary and is_binary(content):
        raise Refusal(400, f"{value['path']}: a binary file of {len(content)} bytes has to go to LFS")
    files[check_path(value["path"])] = File(len(content), content)


def _add_lfs_file(call: Call, repo: Repo, files: dict[str, File], value: dict[str, Any]) -> None:
    sha256 = value["oid"]
    if value.get("algo") != "sha256" or sha256 not in repo.objects:
        raise Refusal(400, f"{value['path']}: there is no LFS object {sha256}")
    size = call.state.objects.path(sha256).stat().st_size
    if value.get("size", size) != size:
        raise Refusal(400, f"{value['path']}: LFS object {sha256} has {size} bytes, not {value['size']}")
    files[check_path(value["path"])] = File(size, None, sha256)


def _delete_file(call: Call, repo: Repo, files: dict[str, File], value: dict[str, Any]) -> None:  # noqa: ARG001
    if files.pop(value["path"], None) is None:
        # The client looks for these words.
        raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")


def _delete_folder(call: Call, repo: Repo, files: dict[str, File], value: dict[str, Any]) -> None:  # noqa: ARG001
    folder = value["path"].rstrip("/")
    below = [path for path in files if path.startswith(f"{folder}/")]
    if not below:
        raise Refusal(404, f"{folder}: no such folder", "EntryNotFound")
    for path in below:
        del files[path]


OPERATIONS: dict[str, Callable[[Call, Repo, dict[str, File], dict[str, Any]], None]] = {
    "file": _add_file,
    "lfsFile": _add_lfs_file,
    "deletedFile": _delete_file,
    "deletedFolder": _delete_folder,
}


@HUB("POST", f"{REPO}/commit{REVISION}")
def commit(call: Call) -> Reply:
    """Lines of JSON: a header, then one for each change. All of it is done, or nothing."""
    repo, branch, limits = call.repo(write=True), call.names["revision"], call.state.limits
    head = repo.head(branch)
    if call.request.flag("create_pr"):
        raise Refusal(403, "this Hub has no pull requests")
    if call.request.size > limits.commit_bytes:
        raise Refusal(413, f"{call.request.size} bytes: a commit has at most {limits.commit_bytes}; files go to LFS before it")
    lines = _lines(call)
    header = lines.pop(0)["value"] if lines and lines[0]["key"] == "header" else {}
    if not header.get("summary"):
        raise Refusal(400, "a commit begins with a header that has a summary")
    if not head.id.startswith(header.get("parentCommit", head.id)):
        raise Refusal(412, f"another commit has come since: {branch} is at {head.id}")
    files = dict(head.files)
    for line in lines:
        if line["key"] not in OPERATIONS:
            raise Refusal(400, f"{line['key']}: a commit has no such lines")
        OPERATIONS[line["key"]](call, repo, files, line["value"])
    check_folders(files, limits)
    assert call.account is not None
    new = repo.add(branch, files, header["summary"], header.get("description", ""), call.account.user)
    url = f"{call.state.url}/{repo.url_path}/commit/{new.id}"
    return json_reply({"success": True, "commitOid": new.id, "commitUrl": url, "hookOutput": ""})


def _lines(call: Call) -> list[dict[str, Any]]:
    if call.request.headers.get_content_type() != "application/x-ndjson":
        raise Refusal(400, "a commit is sent as application/x-ndjson")
    try:
        return [json.loads(line) for line in call.request.body if line.strip()]
    except ValueError:
        raise Refusal(400, "a line of the commit is not JSON") from None


def _file(call: Call, commit: Commit) -> tuple[File, dict[str, str]]:
    """A file and what its address tells of it."""
    path = call.names["path"]
    file = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.id}
    if file is None:
        # With the commit, the client remembers that the file is not there.
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    return file, headers | {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"', "ETag": f'"{file.etag}"'}


@HUB("GET HEAD", f"{PLACE}/resolve{REVISION}/(?P<path>.+)")
def resolve(call: Call) -> Reply:
    """Leads to where the content is: for a file in LFS on the storage host, for another one elsewhere on the Hub."""
    repo = call.repo()
    commit = repo.resolve(call.names["revision"])
    file, headers = _file(call, commit)
    if file.sha256:
        return Reply(302, b"", headers | {"Location": call.state.download_url(file.sha256)})
    place = f"/api/resolve-cache/{repo.kind}/{repo.id}/{commit.id}/{quote(call.names['path'])}"
    return Reply(307, b"", headers | {"Location": place})


@HUB("GET HEAD", f"/api/resolve-cache{REPO.removeprefix('/api')}{REVISION}/(?P<path>.+)")
def resolve_cache(call: Call) -> Reply:
    file, headers = _file(call, call.repo().resolve(call.names["revision"]))
    if file.content is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    return content_reply(call.request, file.content, headers)


def contents(state: State, commit: Commit) -> dict[str, bytes]:
    """All files of a commit."""
    return {
        path: state.objects.path(file.sha256).read_bytes() if file.content is None else file.content
        for path, file in commit.files.items()
    }
