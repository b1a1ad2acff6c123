"""Large files: the batch that tells where to upload, and the storage host that takes and gives contents.

Addresses on the storage host are signed, and a request that brings credentials there is refused, as S3 does: a client that sends
its token along gives it away.
"""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING, Any

from tests.hub.messages import Refusal, Reply, content_reply, json_reply
from tests.hub.routes import HUB, PLACE, STORAGE, Call

if TYPE_CHECKING:
    from tests.hub.repos import Repo

MEDIA_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}


def _actions(call: Call, repo: Repo, sha256: str, size: int, *, parts: bool) -> dict[str, Any]:
    """Where an object goes: to one address, or to one for each part and then to the Hub, which joins them."""
    state = call.state
    name = state.objects.begin(repo, sha256, size)
    part_bytes = state.limits.part_bytes
    upload: dict[str, Any] = {"href": state.storage_url + state.objects.signed(f"/upload/{name}")}
    if parts and size > part_bytes:
        numbers = range(1, ceil(size / part_bytes) + 1)
        urls = {f"{n:05}": state.storage_url + state.objects.signed(f"/upload/{name}/{n}") for n in numbers}
        complete = state.url + state.objects.signed(f"/api/complete_multipart/{name}")
        upload = {"href": complete, "header": {"chunk_size": str(part_bytes), **urls}}
    return {"upload": upload, "verify": {"href": f"{state.url}/{repo.url_path}.git/info/lfs/objects/verify"}}


@HUB("POST", rf"{PLACE}\.git/info/lfs/objects/batch")
def batch(call: Call) -> Reply:
    repo = call.repo(write=True)
    body = call.request.json()
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise Refusal(400, "only uploads of objects named by SHA-256 are asked for here")
    if "ref" in body:
        repo.head(body["ref"]["name"])
    parts = "multipart" in body.get("transfers", ["basic"])
    told = []
    for item in body["objects"]:
        sha256, size = item["oid"], item["size"]
        answer: dict[str, Any] = {"oid": sha256, "size": size}
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            answer["error"] = {"code": 422, "message": "not a SHA-256"}
        elif sha256 not in repo.objects:  # else there is nothing to do, which no actions say
            answer["actions"] = _actions(call, repo, sha256, size, parts=parts)
        told.append(answer)
    return json_reply({"transfer": "multipart" if parts else "basic", "objects": told}, headers=MEDIA_TYPE)


@HUB("POST", rf"{PLACE}\.git/info/lfs/objects/verify")
def verify(call: Call) -> Reply:
    repo, body = call.repo(write=True), call.request.json()
    sha256 = body["oid"]
    if sha256 not in repo.objects or call.state.objects.path(sha256).stat().st_size != body["size"]:
        raise Refusal(404, f"there is no LFS object {sha256} of {body['size']} bytes")
    return json_reply({}, headers=MEDIA_TYPE)


@HUB("POST", "/api/complete_multipart/(?P<upload>[^/]+)")
def complete_multipart(call: Call) -> Reply:
    objects, name = call.state.objects, call.names["upload"]
    objects.check_signature(call.request)
    upload, body = objects.upload(name), call.request.json()
    sent = {part["partNumber"]: part["etag"].strip('"') for part in body["parts"]}
    if body["oid"] != upload.sha256 or list(sent) != sorted(sent) or sent != upload.parts:
        raise Refusal(400, "these are not the parts that were uploaded")
    size, sha256 = objects.join(name)
    _check(upload.size, upload.sha256, size, sha256)
    objects.keep(name)
    upload.repo.objects.add(sha256)
    return json_reply({})


def _check(size: int, sha256: str, sent_size: int, sent_sha256: str) -> None:
    if (size, sha256) != (sent_size, sent_sha256):
        raise Refusal(400, f"{sent_size} bytes of SHA-256 {sent_sha256} came, where {size} of {sha256} were announced")


@STORAGE("PUT", "/upload/(?P<upload>[^/]+)")
def put_object(call: Call) -> Reply:
    objects, request, name = call.state.objects, call.request, call.names["upload"]
    objects.check_signature(request)
    upload = objects.upload(name)
    _check(upload.size, upload.sha256, request.size, request.sha256)
    objects.put(request.body, upload.sha256)
    upload.repo.objects.add(upload.sha256)
    return Reply(200, b"", {"ETag": f'"{upload.sha256}"'})


@STORAGE("PUT", r"/upload/(?P<upload>[^/]+)/(?P<part>\d+)")
def put_part(call: Call) -> Reply:
    objects, request, number = call.state.objects, call.request, int(call.names["part"])
    objects.check_signature(request)
    upload, part_bytes = objects.upload(call.names["upload"]), call.state.limits.part_bytes
    expected = min(part_bytes, upload.size - (number - 1) * part_bytes)
    if request.size != expected:
        raise Refusal(400, f"part {number} has {request.size} bytes, not {expected}")
    return Reply(200, b"", {"ETag": f'"{objects.put_part(call.names["upload"], number, request.body)}"'})


@STORAGE("GET HEAD", "/content/(?P<sha256>[0-9a-f]{64})")
def get_object(call: Call) -> Reply:
    objects, sha256 = call.state.objects, call.names["sha256"]
    objects.check_signature(call.request)
    if not objects.path(sha256).exists():
        raise Refusal(404, f"there is no object {sha256}")
    return content_reply(call.request, objects.path(sha256), {"ETag": f'"{sha256}"'})
