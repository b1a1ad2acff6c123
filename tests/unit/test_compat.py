"""The drop-in functions: arguments, results, and the exceptions that programs written for `processfork` catch."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pfimg
import pfimg as processfork

ABSENT = "sha256:" + "1" * 64


@pytest.fixture
def sandbox(tmp_path: Path) -> str:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "a.txt").write_text("alpha")
    (tmp_path / "sandbox" / ".gitignore").write_text("*")
    return str(tmp_path / "sandbox")


def test_the_quick_start_of_the_original_runs(tmp_path: Path, sandbox: str) -> None:
    store = processfork.PfStore.open(str(tmp_path / "store"))
    cid = processfork.snapshot_filesystem(
        store,
        agent_kind="my-agent",
        fs_root=sandbox,
        env={"PWD": sandbox},
        messages=[{"role": "user", "content": "hi"}],
    )
    processfork.checkout_filesystem(store, cid, str(tmp_path / "no" / "such" / "parent"))
    assert (tmp_path / "no" / "such" / "parent" / "a.txt").read_text() == "alpha"
    manifest = processfork.read_manifest(store, cid)
    assert manifest["agent"] == {"kind": "my-agent", "version": pfimg.__version__, "fingerprint": "pfimg"}
    assert manifest["parents"] == []
    assert json.loads(processfork.read_blob(store, manifest["world"]["env"])) == {
        "cwd": sandbox,
        "kind": "env.v1",
        "vars": {"PWD": sandbox},
    }
    assert store.physical_bytes() > 0


def test_argument_names_are_the_original_s() -> None:
    def names(function: Callable[..., object]) -> str:
        return " ".join(inspect.signature(function).parameters)

    assert names(pfimg.digest_of) == "bytes"
    assert names(pfimg.put_blob) == "store bytes"
    assert names(pfimg.read_blob) == "store digest"
    assert names(pfimg.read_manifest) == "store cid"
    assert names(pfimg.checkout_filesystem) == "store cid target_path"
    assert names(pfimg.merge) == "store a b alpha dare_p seed"
    expected = "store agent_kind fs_root env messages effects default_scrub_env scrub_env parents"
    assert names(pfimg.snapshot_filesystem) == expected


def test_all_arguments_work_by_position(store: pfimg.PfStore, sandbox: str) -> None:
    parent = pfimg.snapshot_filesystem(store, "a", sandbox, {}, [])
    messages = [{"role": "user", "content": "hi", "name": "left out"}]
    image = pfimg.snapshot_filesystem(
        store, "a", sandbox, {"MINE": "1", "TOKEN": "2"}, messages, [{"tool_id": "x"}], False, ["MINE"], [parent]
    )
    manifest = pfimg.read_manifest(store, image)
    assert manifest["parents"] == [parent]
    assert json.loads(pfimg.read_blob(store, manifest["world"]["env"]))["vars"] == {"MINE": "<redacted>", "TOKEN": "2"}
    assert pfimg.read_blob(store, manifest["trace"]["messages"]) == b'{"content":"hi","role":"user"}\n'
    assert len(pfimg.effects.parse(pfimg.read_blob(store, manifest["effects"]["ledger"])).entries) == 1


def test_blobs_by_digest(store: pfimg.PfStore) -> None:
    digest = pfimg.put_blob(store, bytearray(b"a"))
    assert digest == pfimg.digest_of(bytes=b"a") == "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert pfimg.read_blob(store, digest) == b"a"


@pytest.mark.parametrize("digest", ["zz", "sha256:00", "SHA256:" + "0" * 64, "sha256:" + "A" * 64])
def test_a_malformed_digest_is_a_value_error(store: pfimg.PfStore, tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        pfimg.read_blob(store, digest)
    with pytest.raises(ValueError, match="digest"):
        pfimg.read_manifest(store, digest)
    with pytest.raises(ValueError, match="digest"):
        pfimg.checkout_filesystem(store, digest, str(tmp_path / "out"))


def test_what_is_absent_is_a_runtime_error(store: pfimg.PfStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not in the store"):
        pfimg.read_blob(store, ABSENT)
    with pytest.raises(RuntimeError, match="not in the store"):
        pfimg.read_manifest(store, ABSENT)
    with pytest.raises(RuntimeError, match="not in the store"):
        pfimg.checkout_filesystem(store, ABSENT, str(tmp_path / "out"))


@pytest.mark.parametrize("content", [b"a", b"[1]", b'{"a":1}', b'{"schema_version":2}'])
def test_what_is_no_manifest_is_a_value_error(store: pfimg.PfStore, tmp_path: Path, content: bytes) -> None:
    digest = pfimg.put_blob(store, content)
    with pytest.raises(ValueError, match="manifest"):
        pfimg.read_manifest(store, digest)
    with pytest.raises(ValueError, match="manifest"):
        pfimg.checkout_filesystem(store, digest, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"messages": [{"role": "u"}]}, ValueError, "'content'"),
        ({"messages": [{"content": "c"}]}, ValueError, "'role'"),
        ({"messages": ["x"]}, TypeError, "mapping"),
        ({"messages": [{"role": None, "content": "x"}]}, TypeError, "must be a str"),
        ({"messages": None}, TypeError, "NoneType"),
        ({"env": {"a": 1}}, TypeError, "must be str"),
        ({"env": {1: "a"}}, TypeError, "must be str"),
        ({"env": None}, TypeError, "env must be a mapping"),
        ({"effects": [{}]}, ValueError, "'tool_id'"),
        ({"effects": ["x"]}, TypeError, "mapping"),
        ({"scrub_env": ["("]}, ValueError, "scrub_env"),
        ({"scrub_env": "x"}, TypeError, "not one str"),
        ({"parents": ["x"]}, ValueError, "parents"),
        ({"parents": "x"}, TypeError, "not one str"),
    ],
)
def test_malformed_arguments_raise_what_the_original_raises(
    store: pfimg.PfStore, sandbox: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    arguments = {"agent_kind": "k", "fs_root": sandbox, "env": {}, "messages": []} | options
    with pytest.raises(kind, match=message):
        pfimg.snapshot_filesystem(store, **arguments)
    assert list(store.images()) == []


def test_a_bad_session_secret_is_a_value_error(store: pfimg.PfStore, sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_SESSION_SECRET", "zz")
    with pytest.raises(ValueError, match="PF_SESSION_SECRET"):
        pfimg.snapshot_filesystem(store, "k", sandbox, {}, [])


def test_system_errors_are_runtime_errors_of_one_line(store: pfimg.PfStore, sandbox: str, tmp_path: Path) -> None:
    image = pfimg.snapshot_filesystem(store, "k", sandbox, {}, [])
    with pytest.raises(RuntimeError, match="sandbox") as exists:
        pfimg.checkout_filesystem(store, image, sandbox)
    with pytest.raises(RuntimeError, match="nowhere") as missing:
        pfimg.snapshot_filesystem(store, "k", str(tmp_path / "nowhere"), {}, [])
    assert isinstance(exists.value, pfimg.StoreError)
    assert isinstance(exists.value, FileExistsError)
    assert isinstance(missing.value, FileNotFoundError)
    assert "\n" not in str(exists.value) + str(missing.value)


def test_merge_says_that_it_is_not_offered(store: pfimg.PfStore) -> None:
    with pytest.raises(RuntimeError, match="not offered") as caught:
        pfimg.merge(store, ABSENT, ABSENT, alpha=0.5)
    assert isinstance(caught.value, pfimg.PfimgError)
    assert caught.value.code == "not_offered"
