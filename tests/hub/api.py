"""Repositories, revisions and who one is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.hub.messages import Refusal, Reply, Request, json_reply
from tests.hub.routes import HUB, REPO, REVISION, Call

if TYPE_CHECKING:
    from datetime import datetime

    from tests.hub.repos import Commit, Repo


def timestamp(date: datetime) -> str:
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def next_page(call: Call, **query: int | str) -> dict[str, str]:
    """The header that leads on, with what the request asked for and these instead."""
    pairs = [(name, value) for name, values in call.request.query.items() if name not in query for value in values]
    told = "&".join(f"{name}={value}" for name, value in [*pairs, *query.items()])
    return {"Link": f'<{call.state.url}{call.request.path}?{told}>; rel="next"'}


@HUB("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    if call.account is None:
        raise call.state.unknown()
    user, role = call.account.user, call.account.role
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return json_reply({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": token})


def _named(call: Call, request: Request) -> tuple[Any, tuple[str, str, str]]:
    """The body of a request to create or delete a repository, and which one it names."""
    body = request.json()
    kind, name = body.get("type", "model"), str(body.get("name"))
    if kind not in ("model", "dataset", "space") or not re.fullmatch(r"[\w.-]{1,96}", name):
        raise Refusal(400, f"{kind} {name}: not a kind and name of a repository")
    if call.account is None:
        raise call.state.unknown()
    return body, (f"{kind}s", body.get("organization") or call.account.user, name)


@HUB("POST", "/api/repos/create")
def create_repo(call: Call) -> Reply:
    body, (kind, owner, name) = _named(call, call.request)
    call.state.check_write(owner, call.account)
    if old := call.state.repos.get((kind, owner, name)):
        there = {"error": f"there is a repository {old.id} already", "url": f"{call.state.url}/{old.url_path}"}
        return json_reply(there, 409)
    # The first is what clients sent before they knew the second.
    private = body.get("private", False) or body.get("visibility") == "private"
    repo = call.state.create(kind, owner, name, private=private)
    return json_reply({"url": f"{call.state.url}/{repo.url_path}", "name": repo.id, "private": private})


@HUB("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Reply:
    _, key = _named(call, call.request)
    call.state.repo(*key, call.account, write=True)
    del call.state.repos[key]
    return json_reply({})


@HUB("POST", "/api/validate-yaml")
def validate_card(call: Call) -> Reply:  # noqa: ARG001 - any card is fine
    return json_reply({"errors": [], "warnings": []})


@HUB("GET", REPO)
@HUB("GET", f"{REPO}/revision{REVISION}")
def info(call: Call) -> Reply:
    repo = call.repo()
    commit = repo.resolve(call.names.get("revision", "main"))
    blobs = call.request.flag("blobs")
    siblings = []
    for path, entry in commit.entries.items():
        if (file := entry.file) is not None:
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling |= {"blobId": file.oid, "size": file.size}
            if blobs and file.sha256:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
            siblings.append(sibling)
    told = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.id,
        "createdAt": timestamp(repo.created),
        "lastModified": timestamp(repo.branches["main"].date),
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "tags": [],
        "siblings": siblings,
    }
    if wanted := call.request.query.get("expand"):
        told = {name: value for name, value in told.items() if name in ("_id", "id", *wanted)}
    return json_reply(told)


@HUB("GET", f"{REPO}/refs")
def refs(call: Call) -> Reply:
    repo = call.repo()

    def listed(folder: str, targets: dict[str, Commit]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit.id} for name, commit in sorted(targets.items())
        ]

    told = {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": [], "pullRequests": []}
    return json_reply(told)


@HUB("GET", f"{REPO}/commits{REVISION}")
def commits(call: Call) -> Reply:
    log = list(call.repo().resolve(call.names["revision"]).log())
    page, size = int(call.request.query.get("p", ["0"])[0]), call.state.limits.commits_page
    shown = log[page * size : (page + 1) * size]
    told = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.user}],
            "date": timestamp(commit.date),
        }
        for commit in shown
    ]
    return json_reply(told, headers=next_page(call, p=page + 1) if len(log) > (page + 1) * size else {})


def _new_ref(repo: Repo, refs: dict[str, Commit], name: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name:
        raise Refusal(400, f"{name}: not a name for a branch or tag")
    if name in refs:
        raise Refusal(409, f"{name}: {repo.id} has that already")


def _drop_ref(repo: Repo, refs: dict[str, Commit], name: str) -> None:
    if name not in refs:
        raise Refusal(404, f"{name}: {repo.id} has nothing of that name", "RevisionNotFound")
    del refs[name]


@HUB("POST", f"{REPO}/branch{REVISION}")
def create_branch(call: Call) -> Reply:
    repo, name = call.repo(write=True), call.names["revision"]
    _new_ref(repo, repo.branches, name)
    repo.branches[name] = repo.resolve(call.request.json().get("startingPoint", "main"))
    return json_reply({})


@HUB("DELETE", f"{REPO}/branch{REVISION}")
def delete_branch(call: Call) -> Reply:
    if call.names["revision"] == "main":
        raise Refusal(400, "main: a repository keeps its main branch")
    repo = call.repo(write=True)
    _drop_ref(repo, repo.branches, call.names["revision"])
    return json_reply({})


@HUB("POST", f"{REPO}/tag{REVISION}")
def create_tag(call: Call) -> Reply:
    repo = call.repo(write=True)
    target, name = repo.resolve(call.names["revision"]), str(call.request.json().get("tag"))
    _new_ref(repo, repo.tags, name)
    repo.tags[name] = target
    return json_reply({})


@HUB("DELETE", f"{REPO}/tag{REVISION}")
def delete_tag(call: Call) -> Reply:
    repo = call.repo(write=True)
    _drop_ref(repo, repo.tags, call.names["revision"])
    return json_reply({})
