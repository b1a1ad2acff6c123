"""Snapshot, checkout and diff: what an image holds, and that a failure leaves nothing visible."""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pfimg
from pfimg import timestamps

ABSENT = "sha256:" + "0" * 64


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    root = tmp_path / "sandbox"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("alpha")
    (root / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "link").symlink_to("a.txt")
    return root


def paths(store: pfimg.PfStore, image: str) -> list[str]:
    tree = pfimg.FsTree.from_json(store.get(store.get_manifest(image).world.fs))
    return [entry.path for entry in tree.entries]


def layer(store: pfimg.PfStore, image: str, name: str) -> bytes:
    section, field = name.split(".")
    return store.get(getattr(getattr(store.get_manifest(image), section), field))


# What an image holds


def test_an_image_of_nothing_has_the_documents_of_the_format(store: pfimg.PfStore) -> None:
    image = pfimg.snapshot(store, agent="tester")
    assert layer(store, image, "model.base") == b"base:tester"
    assert layer(store, image, "model.diff") == b'{"diff":{"adapters":[],"kind":"lora"},"layout":"model.diff.v1"}'
    assert layer(store, image, "cache.manifest") == (
        b'{"dtype":"bf16","head_dim":0,"layout":"paged-batchinvariant-v1","logical_seqs":[],'
        b'"n_heads":0,"n_layers":0,"page_size_tokens":16,"pages":[]}'
    )
    assert layer(store, image, "world.fs") == b'{"kind":"fs.tree.v1","entries":[]}'
    assert layer(store, image, "world.env") == b'{"cwd":"","kind":"env.v1","vars":{}}'
    assert json.loads(layer(store, image, "world.procs")).keys() == {"kind", "note", "unsupported_on"}
    assert layer(store, image, "trace.messages") == b""
    assert pfimg.effects.parse(layer(store, image, "effects.ledger")).entries == ()
    assert [found for found, _ in store.images()] == [image]


def test_the_manifest_tells_who_when_and_of_whom(store: pfimg.PfStore) -> None:
    before = time.time_ns()
    parent = pfimg.snapshot(store, agent="tester")
    child = pfimg.snapshot(store, agent=pfimg.AgentInfo("other", "2", "ff"), parents=[parent, ABSENT])
    after = time.time_ns()
    old, new = store.get_manifest(parent), store.get_manifest(child)
    assert (old.agent.kind, old.agent.version, old.agent.fingerprint, old.parents) == ("tester", "", "", ())
    assert (new.agent.kind, new.agent.version, new.agent.fingerprint, new.parents) == ("other", "2", "ff", (parent, ABSENT))
    assert timestamps.normalise(new.created_at) == new.created_at
    assert timestamps.from_ns(before)[:19] <= old.created_at[:19] <= new.created_at[:19] <= timestamps.from_ns(after)[:19]


def test_messages_are_json_lines(store: pfimg.PfStore) -> None:
    messages = [{"role": "user", "content": "hi é \u2028\n"}, {"content": "", "role": "tool"}]
    image = pfimg.snapshot(store, agent="tester", messages=iter(messages))
    expected = '{"content":"hi é \u2028\\n","role":"user"}\n{"content":"","role":"tool"}\n'
    assert layer(store, image, "trace.messages") == expected.encode()


def test_the_environment_is_scrubbed_and_the_directory_recorded(store: pfimg.PfStore, sandbox: Path) -> None:
    env = {"HF_TOKEN": "hf", "MINE": "1", "HOME": "/h"}
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox, env=env, scrub_env=["^MINE$"])
    document = json.loads(layer(store, image, "world.env"))
    assert document["vars"] == {"HF_TOKEN": "<redacted>", "HOME": "/h", "MINE": "<redacted>"}
    assert document["cwd"] == str(sandbox)
    plain = pfimg.snapshot(store, agent="tester", fs_root=sandbox, env=env, cwd="/srv", default_scrub_env=False)
    assert json.loads(layer(store, plain, "world.env")) == {"cwd": "/srv", "kind": "env.v1", "vars": env}


def test_effects_are_chained(store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_SESSION_SECRET", "00ff")
    image = pfimg.snapshot(store, agent="tester", effects=[{"tool_id": "mail"}])
    ledger = pfimg.effects.parse(layer(store, image, "effects.ledger"))
    assert ledger.verify(b"\x00\xff") == "authenticated"
    assert [entry.tool_id for entry in ledger.entries] == ["mail"]


def test_model_layers_are_bytes_or_digests(store: pfimg.PfStore) -> None:
    adapter = store.put(b"adapter")
    image = pfimg.snapshot(store, agent="tester", model_base=b"llama", model_diff=adapter)
    assert layer(store, image, "model.base") == b"llama"
    assert store.get_manifest(image).model.diff == adapter


def test_pages_come_back_by_the_image_s_id(store: pfimg.PfStore, kv_pages: Any) -> None:
    cache = store.put_pages(kv_pages.meta, kv_pages.k[:3], kv_pages.v[:3])
    image = pfimg.snapshot(store, agent="tester", cache=cache)
    assert layer(store, image, "cache.manifest") == cache.to_json()
    k, v = store.get_pages(image)
    assert k.tobytes() == kv_pages.k[:3].tobytes()
    assert v.tobytes() == kv_pages.v[:3].tobytes()


def test_a_blake3_store_has_blake3_images(tmp_path: Path, sandbox: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", digest="blake3")
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    assert image.startswith("blake3:")
    assert store.get_manifest(image).media_type == "application/vnd.pfimg.image.v1+json"
    pfimg.checkout(store, image, tmp_path / "back")
    assert (tmp_path / "back" / "a.txt").read_text() == "alpha"


# What is left out of a directory


def test_the_ignore_file_of_the_directory_is_obeyed(store: pfimg.PfStore, sandbox: Path) -> None:
    (sandbox / ".gitignore").write_text("\N{ZERO WIDTH NO-BREAK SPACE}*.txt\n!keep.txt\n", "utf-8")
    (sandbox / "keep.txt").touch()
    everything = [".gitignore", "a.txt", "keep.txt", "link", "sub", "sub/run.sh"]
    assert paths(store, pfimg.snapshot(store, agent="t", fs_root=sandbox)) == [p for p in everything if p != "a.txt"]
    assert paths(store, pfimg.snapshot(store, agent="t", fs_root=sandbox, ignore_files=False)) == everything
    assert "a.txt" in paths(store, pfimg.snapshot(store, agent="t", fs_root=sandbox, ignore=["!a.txt"]))
    (sandbox / ".pfignore").write_text("sub/\n")
    found = paths(store, pfimg.snapshot(store, agent="t", fs_root=sandbox))
    assert "a.txt" in found
    assert "sub" not in found


def test_an_ignore_file_that_is_not_text_is_named(store: pfimg.PfStore, sandbox: Path) -> None:
    (sandbox / ".pfignore").write_bytes(b"a\n\xff")
    with pytest.raises(pfimg.FormatError, match=r"\.pfignore is not UTF-8") as caught:
        pfimg.snapshot(store, agent="t", fs_root=sandbox)
    assert caught.value.offset == 2


# What is refused, and that nothing is visible then


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"messages": [{"role": "user"}]}, pfimg.FormatError, r"messages\[0\] has no 'content'"),
        ({"messages": [{"content": "hi"}]}, pfimg.FormatError, r"messages\[0\] has no 'role'"),
        ({"messages": [{"role": "user", "content": "hi", "name": "x"}]}, pfimg.FormatError, "'name' cannot be recorded"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, TypeError, r"messages\[0\]: content must be a str, not list"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, pfimg.FormatError, r"messages\[0\] is not valid Unicode"),
        ({"messages": ["hi"]}, TypeError, r"messages\[0\] must be a mapping"),
        ({"effects": [{"ts": "x"}]}, pfimg.FormatError, r"effects\[0\] has no 'tool_id'"),
        ({"env": {"A": 1}}, TypeError, "must be str"),
        ({"scrub_env": ["("]}, pfimg.FormatError, "not a regular expression"),
        ({"parents": ["x"]}, pfimg.FormatError, r"parents\[0\]: 'x' is not an image id"),
        ({"parents": [ABSENT] * 3}, pfimg.FormatError, "at most 2 parents, not 3"),
        ({"parents": ABSENT}, TypeError, "not one str"),
    ],
)
def test_a_malformed_argument_fails_before_anything_is_written(
    store: pfimg.PfStore, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pfimg.snapshot(store, agent="tester", fs_root="/no such directory", **options)
    assert store.stats().blobs == 0


def test_what_is_named_but_absent_is_refused(store: pfimg.PfStore, kv_pages: Any, tmp_path: Path) -> None:
    elsewhere = pfimg.PfStore.open(tmp_path / "elsewhere")
    cache = elsewhere.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2])
    for options in ({"model_base": ABSENT}, {"model_diff": ABSENT}, {"cache": cache}):
        with pytest.raises(pfimg.BlobNotFound) as caught:
            pfimg.snapshot(store, agent="tester", **options)
        assert caught.value.digest in {ABSENT, cache.pages[0].k}
    assert list(store.images()) == []


def test_a_directory_that_is_missing_is_the_system_s_error(store: pfimg.PfStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert list(store.images()) == []


def test_a_malformed_agent_is_refused(store: pfimg.PfStore) -> None:
    with pytest.raises(TypeError):
        pfimg.snapshot(store, agent=7)  # type: ignore[arg-type]
    assert list(store.images()) == []


# Progress, and gc beside a snapshot


def test_progress_is_reported_and_may_end_the_call(store: pfimg.PfStore, sandbox: Path, tmp_path: Path) -> None:
    seen: list[pfimg.Progress] = []
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox, progress=seen.append)
    pfimg.checkout(store, image, tmp_path / "back", progress=seen.append)
    last = {event.phase: event for event in seen}
    assert last.keys() == {"capture", "checkout"}
    assert last["capture"].bytes == last["checkout"].bytes > 0
    assert all(event.done == event.total > 0 for event in last.values())

    def stop(_: pfimg.Progress) -> None:
        raise InterruptedError("enough")

    images = list(store.images())
    with pytest.raises(InterruptedError, match="enough"):
        pfimg.snapshot(store, agent="tester", fs_root=sandbox, progress=stop)
    with pytest.raises(InterruptedError, match="enough"):
        pfimg.checkout(store, image, tmp_path / "second", progress=stop)
    assert [found for found, _ in store.images()] == [found for found, _ in images]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "sandbox", "store"]


def test_gc_beside_a_snapshot_takes_nothing_from_it(store: pfimg.PfStore, sandbox: Path) -> None:
    store.put(b"rubbish")
    collectors: list[threading.Thread] = []

    def collect(_: pfimg.Progress) -> None:
        collectors.append(threading.Thread(target=pfimg.PfStore.open(store.root).gc, kwargs={"grace_seconds": 0}))
        collectors[-1].start()

    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox, progress=collect)
    for collector in collectors:
        collector.join()
    assert collectors
    assert store.verify().ok
    assert paths(store, image)


# Checkout


def test_checkout_gives_the_directory_back(store: pfimg.PfStore, sandbox: Path, tmp_path: Path) -> None:
    (sandbox / "sub").chmod(0o550)
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    pfimg.checkout(store, image, tmp_path / "back")
    assert (tmp_path / "back" / "link").readlink() == Path("a.txt")
    assert (tmp_path / "back" / "sub" / "run.sh").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "back" / "sub").stat().st_mode & 0o7777 == 0o550
    # The tree's digest covers every name, mode, link and content.
    assert store.put_tree(tmp_path / "back") == store.get_manifest(image).world.fs
    pfimg.checkout(store, pfimg.snapshot(store, agent="tester"), tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_checkout_refuses_what_exists_and_what_is_absent(store: pfimg.PfStore, sandbox: Path, tmp_path: Path) -> None:
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    with pytest.raises(FileExistsError):
        pfimg.checkout(store, image, sandbox)
    with pytest.raises(pfimg.BlobNotFound) as caught:
        pfimg.checkout(store, ABSENT, tmp_path / "back")
    assert caught.value.digest == ABSENT
    with pytest.raises(pfimg.FormatError):
        pfimg.checkout(store, "sha256:short", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_links_that_lead_out_are_restored_on_request_only(
    store: pfimg.PfStore, sandbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sandbox / "out").symlink_to("/etc/hostname")
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    with caplog.at_level(logging.WARNING, "pfimg"):
        pfimg.checkout(store, image, tmp_path / "safe")
    assert "out" in caplog.text
    assert not (tmp_path / "safe" / "out").is_symlink()
    pfimg.checkout(store, image, tmp_path / "all", allow_absolute_symlinks=True)
    assert (tmp_path / "all" / "out").readlink() == Path("/etc/hostname")


# Difference


def test_an_image_does_not_differ_from_itself_nor_by_its_time(store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_SESSION_SECRET", "00ff")
    first = pfimg.snapshot(store, agent="tester")
    second = pfimg.snapshot(store, agent="tester", parents=[first])
    assert first != second
    assert not pfimg.diff(store, first, first)
    assert not pfimg.diff(store, first, second)


def test_files_that_differ_are_named(store: pfimg.PfStore, sandbox: Path) -> None:
    first = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    (sandbox / "a.txt").write_text("omega")
    (sandbox / "sub" / "run.sh").chmod(0o644)
    (sandbox / "link").unlink()
    (sandbox / "sub-new").touch()
    (sandbox / "sub" / "new").touch()
    second = pfimg.snapshot(store, agent="tester", fs_root=sandbox)
    files = pfimg.diff(store, first, second).files
    assert files == pfimg.Changes(added=("sub/new", "sub-new"), removed=("link",), changed=("a.txt", "sub/run.sh"))
    back = pfimg.diff(store, second, first)
    assert (back.files.added, back.files.removed) == (files.removed, files.added)
    assert back.layers == ("world.fs", "effects.ledger")
    assert not back.pages


def test_pages_and_sequences_that_differ_are_named(store: pfimg.PfStore, kv_pages: Any) -> None:
    meta, k, v = kv_pages
    old = store.put_pages(meta, k[:4], v[:4], logical_seqs=[pfimg.LogicalSeq("a", [0, 1]), pfimg.LogicalSeq("b", [2])])
    swapped = store.put_pages(meta, k[1:2], v[:1], base=old)
    new = store.put_pages(
        meta,
        k[4:6],
        v[4:6],
        first_ix=4,
        base=swapped,
        logical_seqs=[pfimg.LogicalSeq("a", [0, 1], 3), pfimg.LogicalSeq("c", [5])],
    )
    first, second = (pfimg.snapshot(store, agent="tester", cache=cache) for cache in (old, new))
    difference = pfimg.diff(store, first, second)
    assert difference.pages == pfimg.Changes(added=(4, 5), changed=(0,))
    assert difference.sequences.changed == ("a",)
    assert difference.sequences.added == ("c",)
    assert "cache.manifest" in difference.layers
    assert not difference.files


def test_other_layers_that_differ_are_named_in_order(store: pfimg.PfStore) -> None:
    first = pfimg.snapshot(store, agent="tester")
    second = pfimg.snapshot(
        store, agent="other", env={"A": "1"}, messages=[{"role": "user", "content": "hi"}], model_diff=b"lora"
    )
    names = ("agent", "model.base", "model.diff", "world.env", "effects.ledger", "trace.messages")
    assert pfimg.diff(store, first, second).layers == names


def test_opaque_layers_have_no_files_and_no_pages(store: pfimg.PfStore) -> None:
    whole = store.get_manifest(pfimg.snapshot(store, agent="tester"))
    one = store.put(b"opaque")
    opaque = pfimg.Manifest(
        agent=whole.agent,
        model=pfimg.ModelLayer(one, one),
        cache=pfimg.CacheLayer(one),
        world=pfimg.WorldLayer(one, one, one),
        effects=pfimg.EffectsLayer(one),
        trace=pfimg.TraceLayer(one),
        created_at="2026-01-01T00:00:00Z",
    )
    difference = pfimg.diff(store, whole.id, store.put_manifest(opaque))
    assert not difference.files
    assert not difference.pages
    assert {"world.fs", "cache.manifest"} < set(difference.layers)
