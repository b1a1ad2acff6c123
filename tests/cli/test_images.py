import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import pfimg

Command = Any


def test_snapshot_prints_the_id_and_nothing_else(pf: Command, sandbox: Path, tmp_path: Path) -> None:
    result = pf("snapshot", sandbox, "--agent", "tester")
    assert (result.code, result.err) == (0, "")
    store = pfimg.PfStore.open(tmp_path / "store")
    assert [result.out.strip()] == [id for id, _ in store.images()]
    assert pf("snapshot", sandbox, "--agent", "tester", "--json").json.keys() == {"image"}


def test_snapshot_records_what_it_is_given(pf: Command, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    monkeypatch.setenv("MY_PLACE", "here")
    monkeypatch.setenv("MY_COLOUR", "blue")
    messages = tmp_path / "messages.jsonl"
    messages.write_text('{"role": "user", "content": "hi"}\n\n{"role": "assistant", "content": "hello"}\n')
    effects = tmp_path / "effects.jsonl"
    effects.write_text('{"tool_id": "shell"}\n')
    first = pf("snapshot", sandbox, "--agent", "tester").out.strip()
    options = ["--agent-version", "1.2", "--messages", messages, "--effects", effects, "--parent", first[:20]]
    options += ["--scrub-env", "COLOUR", "--ignore", "*.txt"]
    second = pf("snapshot", sandbox, "--agent", "tester", *options).out.strip()
    shown = pf("show", second, "--json").json
    assert shown["manifest"]["agent"] == {"kind": "tester", "version": "1.2", "fingerprint": ""}
    assert (shown["messages"], shown["effects"]) == (2, 1)
    assert shown["manifest"]["parents"] == [first]
    assert shown["tree"]["files"] == 2
    store = pfimg.PfStore.open(tmp_path / "store")
    env = json.loads(store.get(store.get_manifest(second).world.env))
    assert {env["vars"][name] for name in ("MY_TOKEN", "MY_COLOUR")} == {"<redacted>"}
    assert env["vars"]["MY_PLACE"] == "here"
    assert env["cwd"] == str(Path.cwd())
    third = pf("snapshot", sandbox, "--agent", "tester", "--no-env").out.strip()
    assert json.loads(store.get(store.get_manifest(third).world.env))["vars"] == {}


def test_snapshot_takes_pages_from_npy_files(pf: Command, sandbox: Path, pages: tuple[Path, Path], tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    image = pf("snapshot", sandbox, "--agent", "tester", "--cache", *pages).out.strip()
    k, v = pfimg.PfStore.open(tmp_path / "store").get_pages(image)
    assert (k.tobytes(), v.tobytes()) == tuple(np.load(path).tobytes() for path in pages)
    cache = pf("show", image, "--json").json["cache"]
    assert (cache["pages"], cache["dtype"], cache["page_bytes"], cache["n_heads"]) == (6, "bf16", 2 * 4 * 3 * 8 * 2, 3)


def test_pages_of_different_shape_are_refused(pf: Command, sandbox: Path, pages: tuple[Path, Path]) -> None:
    np = pytest.importorskip("numpy")
    np.save(pages[1], np.load(pages[1])[:5])
    result = pf("snapshot", sandbox, "--agent", "tester", "--cache", *pages)
    assert result.code == 1
    assert "v.npy" in result.line


def test_a_store_inside_the_directory_is_left_out(pf: Command, sandbox: Path) -> None:
    image = pf("snapshot", sandbox, "--agent", "tester", "--store", sandbox / "my store").out.strip()
    assert pf("show", image, "--json", "--store", sandbox / "my store").json["tree"]["files"] == 3


@pytest.mark.parametrize("line", ['{"role": "user"', '["role"]', '{"role": "user"}'])
def test_a_malformed_message_is_named(pf: Command, sandbox: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "messages.jsonl").write_text(f'{{"role": "user", "content": "hi"}}\n{line}\n')
    result = pf("snapshot", sandbox, "--agent", "tester", "--messages", tmp_path / "messages.jsonl")
    assert (result.code, result.out) == (1, "")
    assert "line 2" in result.line or "messages[1]" in result.line


def test_show_draws_the_image(pf: Command, sandbox: Path, pages: tuple[Path, Path], tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    store = pfimg.PfStore.open(tmp_path / "store")
    meta = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=3, head_dim=8, dtype="bf16")
    sequences = [pfimg.LogicalSeq("one", [0, 1, 2], 3), pfimg.LogicalSeq("two", [0, 1, 4], 0)]
    cache = store.put_pages(meta, *(np.load(path) for path in pages), logical_seqs=sequences)
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox, cache=cache)
    child = pfimg.snapshot(store, agent="tester", parents=[image])
    shown = pf("show", image).out
    assert image in shown
    for part in (
        "tester",
        "parents  none",
        "3 files, 2 directories, 1 link",
        "2.5 kB  [bold]notes.txt",
        "0 messages",
        "2 sequences",
    ):
        assert part in shown, shown
    assert "one  ▒▒█···  3 pages, 2 shared, 11 tokens" in shown
    assert "two  ▒▒··█·  3 pages, 2 shared, 12 tokens" in shown
    assert image[7:19] in pf("show", child).out
    assert "no pages" in pf("show", child).out
    assert "\x1b" not in shown


def test_texts_from_an_image_cannot_steer_the_terminal(pf: Command, tmp_path: Path) -> None:
    root = tmp_path / "hostile"
    root.mkdir()
    (root / "\x1b[2Jname\n").write_text("x")
    store = pfimg.PfStore.open(tmp_path / "store")
    meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=1, dtype="fp8e4m3")
    cache = store.put_pages(meta, [b"k"], [b"v"], logical_seqs=[pfimg.LogicalSeq("\x1b]0;seq\x07", [0])])
    old = pfimg.snapshot(store, agent="tester")
    new = pfimg.snapshot(store, agent="\x1b[31mred\ragent", fs_root=root, cache=cache)
    for command in (["show", new], ["ls"], ["diff", old, new]):
        out = pf(*command).out
        assert "\\x1b[" in out or "\\x1b]" in out
        assert out.replace("\n", "").isprintable()


def test_show_as_json_has_everything_the_drawing_has(pf: Command, image: str) -> None:
    shown = pf("show", image, "--json").json
    assert shown["image"] == image
    assert shown["tree"] | {"biggest": None} == {"files": 3, "directories": 2, "links": 1, "bytes": 4010, "biggest": None}
    assert shown["tree"]["biggest"][0] == ["[bold]notes.txt", 2500]
    assert list(shown["layers"]) == [
        "model.base", "model.diff", "cache.manifest", "world.fs", "world.env", "world.procs", "effects.ledger", "trace.messages",
    ]  # fmt: skip
    assert shown["cache"]["pages"] == 0
    assert shown["partial"] is False


def test_show_survives_layers_of_unknown_kind(pf: Command, tmp_path: Path) -> None:
    """An image whose layers all point at one small blob is valid."""
    store = pfimg.PfStore.open(tmp_path / "store")
    blob = store.put(b"\xff\x00 opaque")
    manifest = pfimg.Manifest(
        agent=pfimg.AgentInfo("tester"),
        model=pfimg.ModelLayer(blob, blob),
        cache=pfimg.CacheLayer(blob),
        world=pfimg.WorldLayer(blob, blob, blob),
        effects=pfimg.EffectsLayer(blob),
        trace=pfimg.TraceLayer(blob),
        created_at="2026-01-01T00:00:00Z",
    )
    image = store.put_manifest(manifest)
    result = pf("show", image)
    assert result.code == 0
    assert "opaque, 9 B" in result.out
    assert pf("show", image, "--json").json["tree"] is None


def test_checkout_restores_the_directory(pf: Command, image: str, sandbox: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    result = pf("checkout", image, target)
    assert (result.code, result.out.strip()) == (0, str(target))
    assert (target / "src" / "main.py").read_bytes() == (sandbox / "src" / "main.py").read_bytes()
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) == 0o755
    assert os.readlink(target / "latest") == "src/main.py"


def test_checkout_refuses_an_existing_target(pf: Command, image: str, sandbox: Path) -> None:
    result = pf("checkout", image, sandbox)
    assert result.code == 1
    assert str(sandbox) in result.line
    assert "choose another" in result.line


def test_diff_lists_what_changed(pf: Command, image: str, sandbox: Path) -> None:
    (sandbox / "run.sh").write_text("#!/bin/bash\n")
    (sandbox / "new").write_text("")
    (sandbox / "latest").unlink()
    other = pf("snapshot", sandbox, "--agent", "tester").out.strip()
    lines = pf("diff", image, other).out.splitlines()
    assert lines[:3] == ["+ file      new", "- file      latest", "~ file      run.sh"]
    document = pf("diff", image, other, "--json").json
    assert document["files"] == {"added": ["new"], "removed": ["latest"], "changed": ["run.sh"]}
    assert "world.fs" in document["layers"]
    assert pf("diff", image, image).out == "no difference\n"


def test_diff_joins_pages_that_follow_one_another(pf: Command, tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store")
    meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=1, dtype="fp8e4m3")

    def image(values: bytes) -> str:
        rows = [bytes([value]) for value in values]
        return pfimg.snapshot(store, agent="tester", cache=store.put_pages(meta, rows, rows))

    old, new = image(b"abcdefgh"), image(b"aXXXeXghij")
    lines = [line for line in pf("diff", old, new).out.splitlines() if "page" in line]
    assert lines == ["+ page      8-9", "~ page      1-3", "~ page      5"]


def test_rm_removes_all_or_none(pf: Command, image: str, sandbox: Path) -> None:
    other = pf("snapshot", sandbox, "--agent", "tester").out.strip()
    assert pf("rm", image, "sha256:" + "0" * 8).code == 3
    assert len(pf("ls", "--json").json) == 2
    assert pf("rm", image[:30], other, "--json").json == {"removed": [image, other]}
    assert pf("ls", "--json").json == []
    assert "no images" in pf("ls").out


def test_ls_draws_the_lineage(pf: Command, sandbox: Path) -> None:
    def take(*parents: str) -> str:
        options = [word for parent in parents for word in ("--parent", parent)]
        taken: str = pf("snapshot", sandbox, "--agent", "tester", *options).out.strip()
        return taken

    root = take()
    left, right = take(root), take(root)
    merge = take(left, right)
    rows = pf("ls").out.splitlines()
    drawn = "\n".join(row[:5].rstrip() for row in rows)
    assert drawn in ("*\n|\\\n| *\n* |\n|/\no", "*\n|\\\n* |\n| *\n|/\no")
    listed = pf("ls", "--json").json
    assert (listed[0]["image"], listed[-1]["image"]) == (merge, root)
    assert listed[0]["parents"] == [left, right]
    assert pf("ls", "-n", "1", "--json").json == listed[:1]
    pf("rm", root)
    assert f"(parent {root[7:19]} not here)" in pf("ls").out


def test_ls_goes_on_beside_a_damaged_marker(pf: Command, image: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store" / "images" / f"{'0' * 64}.json").write_text("{}")
    assert [item["image"] for item in pf("ls", "--json").json] == [image]
    assert "0" * 64 in caplog.text


def test_prefixes_of_ids(pf: Command, image: str) -> None:
    for prefix in (image, image[7:], image[:9], image[7:10], image[7:20].upper()):
        assert pf("show", prefix, "--json").json["image"] == image


def test_an_ambiguous_prefix_lists_the_candidates(pf: Command, sandbox: Path) -> None:
    images = [pf("snapshot", sandbox, "--agent", "tester").out.strip() for _ in range(17)]
    digits = [image[7] for image in images]
    digit = max(digits, key=digits.count)  # 17 ids, 16 digits
    result = pf("show", digit)
    assert result.code == 2
    assert all(image in result.line for image in images if image[7] == digit) or "more" in result.line


@pytest.mark.parametrize(("text", "code"), [("zz", 2), ("md5:00", 2), ("", 2), ("0" * 65, 2), ("sha256:" + "0" * 64, 3)])
def test_what_is_no_image(pf: Command, image: str, text: str, code: int) -> None:
    result = pf("show", text)
    assert (result.code, result.out) == (code, "")
    assert text in result.line
    assert image


def test_a_missing_store_is_not_made_by_looking(pf: Command, tmp_path: Path) -> None:
    for command in (["ls"], ["show", "00"], ["stats"], ["verify"], ["gc"], ["push", "00", f"file://{tmp_path}/registry"]):
        result = pf(*command)
        assert result.code == 3
        assert str(tmp_path / "store") in result.line
    assert not (tmp_path / "store").exists()


def test_a_missing_directory_is_not_found(pf: Command, tmp_path: Path) -> None:
    result = pf("snapshot", tmp_path / "nowhere", "--agent", "tester")
    assert result.code == 3
    assert str(tmp_path / "nowhere") in result.line
