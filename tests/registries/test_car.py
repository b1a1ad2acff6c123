"""CAR archives given to Kubo, and those that it gives."""

import json
import os
from pathlib import Path

import pytest
from tests import servers
from tests.servers import request

import pfimg


def import_car(kubo: servers.Kubo, archive: bytes) -> list[dict[str, object]]:
    """Sends an archive in one request, and returns what Kubo says of it."""
    boundary = "boundary-of-the-form"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.car"\r\n\r\n'.encode()
    answer = request(
        f"{kubo.api}/api/v0/dag/import?pin-roots=true&stats=true&timeout=60s",
        "POST",
        head + archive + f"\r\n--{boundary}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def unique(size: int) -> bytes:
    return (os.urandom(16) + bytes(max(size - 16, 0)))[:size]


ENTRIES = {
    "few": {"manifest.json": 100, "größe 日本": 20, "empty": 0, "large": (5 << 20) + 1},
    "trie": {f"blob_{number:064x}.zst": 20 for number in range(2500)},
    "nested": {"a/b/c": 20, "a/d": 20, "e": 20},
}


@pytest.mark.parametrize("which", ENTRIES)
def test_kubo_takes_what_is_written_and_gives_it_back(kubo: servers.Kubo, tmp_path: Path, which: str) -> None:
    entries = [(name, unique(size)) for name, size in ENTRIES[which].items()]
    plan = pfimg.car.plan(entries)
    archive = b"".join(plan)
    answers = import_car(kubo, archive)
    assert {"Root": {"Cid": {"/": plan.root}, "PinErrorMsg": ""}} in answers
    block_bytes = sum(len(block.data) for block in pfimg.car.Reader().feed(archive))
    assert {"Stats": {"BlockCount": plan.blocks, "BlockBytesCount": block_bytes}} in answers
    # What Kubo makes of the same files.
    for name, content in entries:
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    added = kubo.run("add", "-r", "--quieter", tmp_path / "files").decode().strip()
    assert added == plan.root
    exported = request(f"{kubo.api}/api/v0/dag/export?arg={plan.root}", "POST")
    assert exported.body == archive
    blocks = pfimg.car.read([exported.body])
    assert blocks.missing(plan.root) == []
    listed = json.loads(request(f"{kubo.api}/api/v0/ls?arg={plan.root}&size=true", "POST").body)["Objects"][0]["Links"]
    assert sorted((link["Name"], link["Hash"]) for link in listed) == sorted((e.name, e.cid) for e in blocks.entries(plan.root))
    for name, content in entries[:5]:
        assert kubo.run("cat", f"/ipfs/{plan.root}/{name}") == content


def test_an_incomplete_archive_is_noticed_on_both_sides(kubo: servers.Kubo) -> None:
    plan = pfimg.car.plan([("a", unique(100)), ("b", unique(100))])
    archive = b"".join(plan)
    last = pfimg.car.Reader().feed(archive)[-1]
    short = archive[: -(2 + 36 + len(last.data))]  # without its length, CID and bytes
    assert pfimg.car.read([short]).missing(plan.root) == [last.cid]
    (answer,) = [answer["Root"] for answer in import_car(kubo, short) if "Root" in answer]
    assert isinstance(answer, dict)
    assert answer["PinErrorMsg"] != ""


def test_directories_with_names_of_version_0_are_read(kubo: servers.Kubo, tmp_path: Path) -> None:
    files = {"small": unique(100), "large": unique((2 << 20) + 5)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    root = kubo.run("add", "-r", "--quieter", "--cid-version=0", "--raw-leaves=false", tmp_path).decode().strip()
    assert root.startswith("Qm")
    blocks = pfimg.car.read([kubo.run("dag", "export", "--progress=false", root)])
    assert blocks.roots == (root,)
    assert {entry.name: blocks.content(entry.cid) for entry in blocks.entries(root)} == files
