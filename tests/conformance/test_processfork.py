"""The published package `processfork` 1.0.15 as the oracle: both work on the same store, and each reads what the other wrote."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processfork
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pfimg

Listing = dict[str, tuple[str, int, bytes]]
HASH = "sha256:" + hashlib.sha256(b".").hexdigest()
EFFECTS: list[dict[str, Any]] = [
    {"tool_id": "ls", "args_hash": HASH, "idempotency_key": "k1", "result_hash": HASH, "side_effect_class": "pure"},
    {"tool_id": "mail", "args_hash": "not a digest", "idempotency_key": "k2", "side_effect_class": "irreversible"},
    {"tool_id": "größe", "side_effect_class": "unheard-of"},
]  # fmt: skip
MESSAGES: list[Any] = [{"role": "user", "content": "list the files"}, {"role": "assistant", "content": 'größe, "a b", \n\u2028'}]
SIZES = [0, 1, 255, 256, 4096, 65_791, 65_792, 73_728, 131_072, 131_073, 1 << 20, (1 << 20) + 1, 20 << 20]


@pytest.fixture(autouse=True)
def _no_session_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PF_SESSION_SECRET", raising=False)


def pages_like(size: int) -> bytes:
    """Bytes without any pattern, so that no codec makes them small."""
    return hashlib.shake_128(b"pfimg").digest(size)


def code_like(size: int) -> bytes:
    return (b"def work(argument: int) -> int:\n    return argument + 1\n" * (size // 50 + 1))[:size]


@pytest.mark.parametrize("codec", ["auto", "zstd", "store"])
@pytest.mark.parametrize("size", SIZES)
def test_the_reference_reads_our_blobs(tmp_path: Path, size: int, codec: str) -> None:
    ours = pfimg.PfStore.open(tmp_path, codec=codec)
    theirs = processfork.PfStore.open(str(tmp_path))
    for content in (pages_like(size), code_like(size)):
        assert processfork.read_blob(theirs, ours.put(content)) == content


@pytest.mark.parametrize("size", SIZES)
def test_we_read_blobs_of_the_reference(tmp_path: Path, size: int) -> None:
    ours = pfimg.PfStore.open(tmp_path)
    theirs = processfork.PfStore.open(str(tmp_path))
    for content in (pages_like(size), code_like(size)):
        digest = processfork.put_blob(theirs, content)
        assert digest == pfimg.digest_of(content)
        assert ours.has(digest)
        assert ours.get(digest) == content
        assert ours.put(content) == digest
    assert ours.physical_bytes() == theirs.physical_bytes()


def both_snapshots(tmp_path: Path, root: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifests of the same directory, ours and theirs, in one store."""
    found = []
    for sdk in (pfimg, processfork):
        store = sdk.PfStore.open(str(tmp_path / "store"))
        image = sdk.snapshot_filesystem(store, agent_kind="tester", fs_root=str(root), env={}, messages=[], **options)
        found.append(sdk.read_manifest(store, image))
    return found[0], found[1]


def test_the_same_directory_has_the_same_tree_digest(tmp_path: Path, odd_names: Path) -> None:
    ours, theirs = both_snapshots(tmp_path, odd_names)
    assert ours["world"]["fs"] == theirs["world"]["fs"]
    assert pfimg.PfStore.open(tmp_path / "other").put_tree(odd_names) == theirs["world"]["fs"]


def test_the_same_names_are_left_out(tmp_path: Path, odd_names: Path) -> None:
    for name in (
        "node_modules/x.js",
        "sub/target/debug",
        "sub/__pycache__/m.pyc",
        ".git/objects/aa/bb",
        ".git/HEAD",
        "m.pyc",
        "sub/.venv/x",
        ".DS_Store",
    ):
        path = odd_names / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    (odd_names / ".gitignore").write_text("hello.txt\n")
    ours, theirs = both_snapshots(tmp_path, odd_names)
    assert ours["world"]["fs"] == theirs["world"]["fs"]


names = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), st.binary(max_size=50), max_size=12))
def test_any_directory_has_the_same_tree_digest(
    tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, ...], bytes]
) -> None:
    root = tmp_path_factory.mktemp("any") / "root"
    root.mkdir()
    for parts, content in files.items():
        path = root.joinpath(*parts)
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    ours, theirs = both_snapshots(root.parent, root)
    assert ours["world"]["fs"] == theirs["world"]["fs"]


def test_layers_that_do_not_depend_on_time_are_the_same(tmp_path: Path, odd_names: Path) -> None:
    ours, theirs = both_snapshots(tmp_path, odd_names)
    for section, field in (
        ("model", "base"),
        ("model", "diff"),
        ("cache", "manifest"),
        ("world", "env"),
        ("trace", "messages"),
    ):
        assert ours[section][field] == theirs[section][field], f"{section}.{field}"
    assert ours.keys() == theirs.keys()
    store = pfimg.PfStore.open(tmp_path / "store")
    procs = [json.loads(store.get(manifest["world"]["procs"])) | {"note": ""} for manifest in (ours, theirs)]
    assert procs[0] == procs[1]
    assert ours["agent"] | {"version": "", "fingerprint": ""} == theirs["agent"] | {"version": "", "fingerprint": ""}


def test_messages_are_written_alike(tmp_path: Path, odd_names: Path) -> None:
    store = tmp_path / "store"
    digests = set()
    for sdk in (pfimg, processfork):
        opened = sdk.PfStore.open(str(store))
        image = sdk.snapshot_filesystem(
            opened, agent_kind="t", fs_root=str(odd_names), env={"LANG": "C", "A": "ü"}, messages=MESSAGES
        )
        manifest = sdk.read_manifest(opened, image)
        digests.add((manifest["trace"]["messages"], manifest["world"]["env"]))
    assert len(digests) == 1


def test_an_image_id_is_the_same_in_both(tmp_path: Path, odd_names: Path) -> None:
    theirs = processfork.PfStore.open(str(tmp_path / "store"))
    ours = pfimg.PfStore.open(tmp_path / "store")
    parent = processfork.snapshot_filesystem(theirs, agent_kind="parent", fs_root=str(odd_names), env={}, messages=MESSAGES)
    child = processfork.snapshot_filesystem(
        theirs, agent_kind="child", fs_root=str(odd_names), env={}, messages=[], parents=[parent]
    )
    for image in (parent, child):
        read = ours.get_manifest(image)
        assert read.id == image
        assert read.to_json() == processfork.read_blob(theirs, image)
        made = pfimg.Manifest(
            agent=read.agent, model=read.model, cache=read.cache, world=read.world, effects=read.effects, trace=read.trace,
            created_at=read.created_at, parents=read.parents,
        )  # fmt: skip
        assert made.id == image
        assert pfimg.read_manifest(ours, image) == processfork.read_manifest(theirs, image)
    assert {image for image, _ in ours.images()} == {parent, child}


def test_the_reference_knows_our_images(tmp_path: Path, odd_names: Path) -> None:
    ours = pfimg.PfStore.open(tmp_path / "store")
    image = pfimg.snapshot(ours, agent="tester", fs_root=odd_names, messages=MESSAGES, env={"LANG": "C"})
    theirs = processfork.PfStore.open(str(tmp_path / "store"))
    raw = processfork.read_blob(theirs, image)
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == image
    assert processfork.read_manifest(theirs, image) == json.loads(raw)
    assert (tmp_path / "store" / "images" / f"{image.removeprefix('sha256:')}.json").read_bytes() == raw


def test_each_checks_out_images_of_the_other(tmp_path: Path, odd_names: Path, listing: Callable[[Path], Listing]) -> None:
    expected = listing(odd_names)
    ours = pfimg.PfStore.open(tmp_path / "store")
    theirs = processfork.PfStore.open(str(tmp_path / "store"))
    our_image = pfimg.snapshot(ours, agent="tester", fs_root=odd_names)
    their_image = processfork.snapshot_filesystem(theirs, agent_kind="tester", fs_root=str(odd_names), env={}, messages=[])
    processfork.checkout_filesystem(theirs, our_image, str(tmp_path / "theirs"))
    pfimg.checkout(ours, their_image, tmp_path / "ours")
    pfimg.checkout_filesystem(ours, our_image, str(tmp_path / "drop-in"))
    assert listing(tmp_path / "ours") == expected
    assert listing(tmp_path / "drop-in") == expected
    assert listing(tmp_path / "theirs") == expected


def chain(lines: list[bytes], secret: bytes) -> list[str]:
    """What the authentication codes of a ledger must be, from the rule of the format alone."""
    found = []
    before = ""
    for line in lines:
        entry = json.loads(line)
        entry["session_hmac"] = ""
        own = hashlib.sha256(json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
        found.append(hmac.new(secret, (before + own).encode(), hashlib.sha256).hexdigest())
        before = own
    return found


@pytest.mark.parametrize("secret", [None, "00112233445566778899aabbccddeeff"])
@pytest.mark.parametrize("sdk", [pfimg, processfork], ids=["pfimg", "processfork"])
def test_ledgers_are_chained_alike(
    tmp_path: Path, odd_names: Path, monkeypatch: pytest.MonkeyPatch, sdk: Any, secret: str | None
) -> None:
    if secret:
        monkeypatch.setenv("PF_SESSION_SECRET", secret)
    store = sdk.PfStore.open(str(tmp_path / "store"))
    image = sdk.snapshot_filesystem(store, agent_kind="t", fs_root=str(odd_names), env={}, messages=[], effects=EFFECTS)
    header, *lines = sdk.read_blob(store, sdk.read_manifest(store, image)["effects"]["ledger"]).splitlines()
    head = json.loads(header)
    assert head["entries"] == len(lines) == len(EFFECTS)
    assert ("session_secret_hex" in head) == (secret is None)
    key = bytes.fromhex(secret or head["session_secret_hex"])
    assert [json.loads(line)["session_hmac"] for line in lines] == chain(lines, key)


def test_ledger_entries_have_the_same_fields(tmp_path: Path, odd_names: Path) -> None:
    entries = []
    for sdk in (pfimg, processfork):
        store = sdk.PfStore.open(str(tmp_path / "store"))
        image = sdk.snapshot_filesystem(store, agent_kind="t", fs_root=str(odd_names), env={}, messages=[], effects=EFFECTS)
        ledger = sdk.read_blob(store, sdk.read_manifest(store, image)["effects"]["ledger"])
        changing = {"ts": "", "session_hmac": "", "session_secret_hex": ""}
        rows = [json.loads(line) for line in ledger.splitlines()]
        entries.append([json.dumps({name: changing.get(name, value) for name, value in row.items()}) for row in rows])
    assert entries[0] == entries[1]


def test_what_the_reference_redacts_we_redact(tmp_path: Path, odd_names: Path) -> None:
    variables = {
        "API_TOKEN": "1", "MY_SECRET": "2", "DB_PASSWORD": "3", "apikey": "4", "OPENAI_API_KEY": "5", "AUTH": "6", "BEARER": "7",
        "PLAIN": "8", "CUSTOM_X": "9", "PWD": "/here", "OLDPWD": "/there", "AWS_ACCESS_KEY_ID": "10", "SSH_KEY": "11",
        "KEYBOARD": "12", "TOKENIZER": "13",
    }  # fmt: skip
    kept = []
    for sdk in (pfimg, processfork):
        store = sdk.PfStore.open(str(tmp_path / "store"))
        image = sdk.snapshot_filesystem(
            store, agent_kind="t", fs_root=str(odd_names), env=variables, messages=[], scrub_env=["^CUSTOM"]
        )
        env = json.loads(sdk.read_blob(store, sdk.read_manifest(store, image)["world"]["env"]))
        assert list(env["vars"]) == sorted(variables)
        kept.append({name for name, value in env["vars"].items() if value != "<redacted>"})
    ours, theirs = kept
    assert ours - {"PWD", "OLDPWD"} <= theirs
    assert ours == {"PLAIN", "PWD", "OLDPWD", "KEYBOARD", "TOKENIZER"}


def test_the_drop_in_surface_is_complete(tmp_path: Path) -> None:
    for name in processfork.__all__:
        assert hasattr(pfimg, name), f"pfimg.{name} is missing"
    with pytest.raises(pfimg.PfimgError, match="merge"):
        pfimg.merge(pfimg.PfStore.open(tmp_path), "a", "b")


def test_errors_are_of_the_classes_that_callers_catch(tmp_path: Path, odd_names: Path) -> None:
    absent = "sha256:" + "0" * 64
    for sdk in (pfimg, processfork):
        store = sdk.PfStore.open(str(tmp_path / "store"))
        with pytest.raises(RuntimeError):
            sdk.read_blob(store, absent)
        with pytest.raises(RuntimeError):
            sdk.read_manifest(store, absent)
        with pytest.raises((RuntimeError, ValueError)):
            sdk.read_blob(store, "sha256:XY")
        image = sdk.snapshot_filesystem(store, agent_kind="t", fs_root=str(odd_names), env={}, messages=[])
        with pytest.raises(RuntimeError):
            sdk.checkout_filesystem(store, image, str(odd_names))
