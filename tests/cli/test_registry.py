import json
from pathlib import Path
from typing import Any

import pytest

import pfimg

Command = Any


@pytest.fixture
def ref(tmp_path: Path) -> str:
    return f"file://{tmp_path}/registry"


@pytest.fixture
def pushed(pf: Command, image: str, ref: str) -> str:
    assert pf("push", image, ref).code == 0
    return ref


def test_push_and_pull_tell_what_moved(pf: Command, image: str, ref: str, tmp_path: Path) -> None:
    sent = pf("push", image[:20], ref, "--json").json
    assert sent["ref"] == ref
    assert sent["sent"] > 0
    assert sent["skipped"] == 0
    again = pf("push", image, ref, "--json").json
    assert (again["sent"], again["skipped"]) == (0, sent["sent"])
    fetched = pf("pull", ref, "--json", "--store", tmp_path / "other").json
    assert (fetched["image"], fetched["fetched"], fetched["signature"]) == (image, sent["sent"], "self-signed")
    assert [item["image"] for item in pf("ls", "--json", "--store", tmp_path / "other").json] == [image]
    assert image in pf("pull", ref).out


def test_named_images_are_listed_and_removed(pf: Command, image: str, pushed: str) -> None:
    assert pf("push", image, f"{pushed}#one").code == 0
    assert pf("ls", pushed, "--json").json == [pushed, f"{pushed}#one"]
    assert pf("ls", pushed).out.split() == [pushed, f"{pushed}#one"]
    assert pf("rm", f"{pushed}#one", image, "--json").json == {"removed": [f"{pushed}#one", image]}
    assert pf("ls", pushed, "--json").json == [pushed]
    assert pf("ls", "--json").json == []
    gone = pf("rm", f"{pushed}#one")
    assert (gone.code, "no image here" in gone.line) == (3, True)
    assert pf("rm", pushed).code == 0
    assert "no images" in pf("ls", pushed).out


def test_a_push_replaces_only_what_is_expected(pf: Command, image: str, sandbox: Path, ref: str) -> None:
    newer = pf("snapshot", sandbox, "--agent", "newer").out.strip()
    assert pf("push", newer, ref, "--expect", image).code == 1
    assert pf("push", image, ref, "--expect", "none").code == 0
    refused = pf("push", newer, ref, "--expect", "none")
    assert (refused.code, f"{image} is there" in refused.line) == (1, True)
    assert pf("push", newer, ref, "--expect", image[:20]).code == 0
    assert pf("copy", ref, f"{ref}-2", "--expect", newer).code == 1
    assert pf("copy", ref, f"{ref}-2", "--expect", "none").code == 0


def test_clone_is_pull_and_checkout(pf: Command, image: str, pushed: str, sandbox: Path, tmp_path: Path) -> None:
    result = pf("clone", pushed, tmp_path / "back", "--store", tmp_path / "other")
    assert result.code == 0
    assert (tmp_path / "back" / "run.sh").read_bytes() == (sandbox / "run.sh").read_bytes()
    assert pf("show", image, "--store", tmp_path / "other").code == 0


def test_clone_looks_at_the_target_before_it_pulls(pf: Command, pushed: str, sandbox: Path, tmp_path: Path) -> None:
    result = pf("clone", pushed, sandbox, "--store", tmp_path / "other")
    assert result.code == 1
    assert str(sandbox) in result.line
    assert not (tmp_path / "other").exists()


def test_layers_can_be_chosen(pf: Command, image: str, pushed: str, tmp_path: Path) -> None:
    other = ("--store", tmp_path / "other")
    assert pf("pull", pushed, "--layers", "trace,model", *other).code == 0
    shown = pf("show", image, "--json", *other).json
    assert shown["partial"] is True
    assert shown["tree"] is None
    assert shown["layers"]["world.fs"]["bytes"] is None
    assert shown["messages"] == 0
    drawn = pf("show", image, *other).out
    assert "partial" in drawn.splitlines()[0]
    assert "not here" in drawn
    assert "partial" in pf("ls", *other).out
    result = pf("checkout", image, tmp_path / "back", *other)
    assert result.code == 3
    assert pf("pull", pushed, *other).code == 0
    assert pf("show", image, "--json", *other).json["partial"] is False


def test_unknown_layers_are_refused(pf: Command, pushed: str) -> None:
    result = pf("pull", pushed, "--layers", "trace,word")
    assert result.code == 2
    assert "'word'" in result.line
    assert "world" in result.line


def test_only_the_trusted_key_is_accepted(pf: Command, image: str, ref: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.key", tmp_path / "theirs.key"
    ours.write_bytes(b"a key of ours, 32 bytes or longer.")
    theirs.write_bytes(b"a key of theirs, 32 bytes or more.")
    assert pf("push", image, ref, "--sign", ours).code == 0
    other = ("--store", tmp_path / "other")
    result = pf("pull", ref, "--trust", theirs, *other)
    assert (result.code, result.out) == (4, "")
    assert pf("ls", "--json", *other).json == []
    fetched = pf("pull", ref, "--trust", theirs, "--trust", ours, "--json", *other).json
    assert fetched["signature"] == "verified"


def test_copy_goes_from_registry_to_registry(pf: Command, image: str, pushed: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/second"
    assert pf("copy", pushed, target, "--json").json["ref"] == target
    assert pf("pull", target, "--store", tmp_path / "other", "--json").json["image"] == image


def test_what_moves_can_be_packed_and_encoded_anew(pf: Command, image: str, tmp_path: Path) -> None:
    packed = f"file://{tmp_path}/packed"
    sent = pf("push", image, packed, "--layout", "packed", "--codec", "zstd", "--jobs", "2", "--json").json
    assert sent["ref"] == f"{packed}#default"
    assert list((tmp_path / "packed" / "packs").glob("*.pack"))
    assert not list((tmp_path / "packed").glob("blobs/*/*/*"))
    options = ("--codec", "store", "--layout", "reference", "--jobs", "2")
    copied = pf("copy", packed, f"file://{tmp_path}/third", *options, "--json").json
    assert copied["sent"] == sent["sent"]
    assert pf("clone", packed, tmp_path / "back", "--jobs", "2", "--store", tmp_path / "other").code == 0
    assert pf("pull", copied["ref"], "--jobs", "2", "--json", "--store", tmp_path / "other").json["fetched"] == 0
    assert pf("push", image, packed, "--layout", "heap").code == 2


def test_programs_get_progress_as_lines(pf: Command, image: str, ref: str, tmp_path: Path) -> None:
    result = pf("push", image, ref, "--json")
    events = [json.loads(line) for line in result.err.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    last = {event["phase"]: event for event in events}
    assert list(last) == ["walk", "send"]
    assert (last["send"]["done"], last["send"]["bytes"]) == (result.json["sent"], result.json["bytes_sent"])
    assert last["send"].keys() >= {"total", "retries", "in_flight"}
    assert last["send"]["rate"] > 0
    assert pf("pull", ref, "--store", tmp_path / "other").err == ""


def test_exists_answers_by_its_exit_code(pf: Command, pushed: str, tmp_path: Path) -> None:
    there, absent = pf("exists", pushed), pf("exists", f"file://{tmp_path}/nothing")
    assert (there.code, there.out, there.err) == (0, "yes\n", "")
    assert (absent.code, absent.out, absent.err) == (3, "no\n", "")
    assert pf("exists", pushed, "--json").json == {"ref": pushed, "exists": True}


def test_nothing_to_pull_is_not_found(pf: Command, tmp_path: Path) -> None:
    result = pf("pull", f"file://{tmp_path}/nothing")
    assert result.code == 3
    assert f"{tmp_path}/nothing" in result.line


@pytest.mark.parametrize("bad", ["registry", "file://relative", "nosuch://place", "s3://"])
def test_references_that_lead_nowhere_are_usage_errors(pf: Command, image: str, bad: str) -> None:
    for command in (["push", image, bad], ["pull", bad], ["exists", bad]):
        result = pf(*command)
        assert result.code == 2, result
        assert bad.partition(":")[0] in result.line


def test_damage_in_a_registry_is_an_integrity_error(pf: Command, image: str, pushed: str, tmp_path: Path) -> None:
    blob = pfimg.PfStore.open(tmp_path / "store").get_manifest(image).world.fs
    path = tmp_path / "registry" / "blobs" / "sha256" / blob[7:9] / f"{blob[7:]}.zst"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    result = pf("pull", pushed, "--store", tmp_path / "other")
    assert (result.code, result.out) == (4, "")
    assert pf("ls", "--json", "--store", tmp_path / "other").json == []


def test_ls_of_a_registry_prints_references(pf: Command, image: str, ref: str) -> None:
    assert pf("ls", ref).out == f"no images at {ref}\n"
    for name in ("", "#b", "#a"):
        assert pf("push", image, f"{ref}{name}").code == 0
    assert pf("ls", ref).out.splitlines() == [ref, f"{ref}#a", f"{ref}#b"]
    assert pf("ls", f"{ref}#a", "--json", "-n", "2").json == [ref, f"{ref}#a"]
    assert pf("ls", "vault://x").code == 2
