"""CAR archives against those of Kubo, which are in `car.json`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import pfimg

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("car.json").read_text())


def sample(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def blob(number: int) -> tuple[str, bytes]:
    content = str(number).encode()
    return f"blob_{hashlib.sha256(content).hexdigest()}.zst", content


def check(entries: list[tuple[str, bytes]], vector: dict[str, Any]) -> pfimg.car.Blocks:
    plan = pfimg.car.plan(reversed(entries))
    assert plan.root == vector["root"]
    archive = b"".join(plan)
    assert (plan.size, len(archive)) == (vector["car_bytes"], vector["car_bytes"])
    assert hashlib.sha256(archive).hexdigest() == vector["car_sha256"]
    blocks = pfimg.car.read([archive])
    assert (blocks.roots, len(blocks), blocks.missing(plan.root)) == ((plan.root,), plan.blocks, [])
    return blocks


@pytest.mark.parametrize("vector", GOLDEN["directories"], ids=lambda vector: vector["entries"])
def test_a_directory_of_blobs_is_the_one_that_kubo_exports(vector: dict[str, Any]) -> None:
    entries = [blob(number) for number in range(vector["entries"])]
    blocks = check(entries, vector)
    found = blocks.entries(vector["root"])
    assert [(entry.name, entry.size) for entry in found] == [(name, len(content)) for name, content in sorted(entries)]
    assert [blocks[entry.cid] for entry in found] == [content for _, content in sorted(entries)]
    # 117 bytes for each link: this is the last that fits 256 KiB.
    kind = "directory" if vector["entries"] <= 2240 else "shard"
    assert pfimg.car.node(vector["root"], blocks[vector["root"]]).kind == kind


@pytest.mark.parametrize("vector", GOLDEN["trees"], ids=lambda vector: len(vector["files"]))
def test_a_tree_is_the_one_that_kubo_exports(vector: dict[str, Any]) -> None:
    check([(name, text.encode()) for name, text in vector["files"].items()], vector)


@pytest.mark.parametrize("vector", GOLDEN["files"], ids=lambda vector: vector["length"])
def test_a_file_has_the_name_that_kubo_gives_it(vector: dict[str, Any], tmp_path: Path) -> None:
    content = sample(vector["length"])
    (tmp_path / "file").write_bytes(content)
    assert pfimg.car.cid_of(content) == vector["cid"]
    plan = pfimg.car.plan([("in a file", tmp_path / "file"), ("in memory", bytearray(content))])
    blocks = pfimg.car.read(plan)
    assert [entry.cid for entry in blocks.entries(plan.root)] == [vector["cid"]] * 2
    assert blocks.content(vector["cid"]) == content


@pytest.mark.parametrize("vector", GOLDEN["zeros"], ids=lambda vector: vector["mebibytes"])
def test_a_file_of_more_than_1024_blocks_has_a_second_level(vector: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(vector["mebibytes"] << 20)
    plan = pfimg.car.plan([("zeros", tmp_path / "zeros")])
    blocks = pfimg.car.read(plan)
    assert [entry.cid for entry in blocks.entries(plan.root)] == [vector["cid"]]
    # The directory, one leaf, and one node over 1,024, or two and one over these.
    assert len(blocks) == (3 if vector["mebibytes"] == 1024 else 5)
