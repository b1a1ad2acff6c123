import base64
import hashlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

Command = Any


@pytest.mark.parametrize(("algorithm", "kind"), [("ed25519", ed25519.Ed25519PrivateKey), ("cosign", ec.EllipticCurvePrivateKey)])
def test_a_pair_signs_and_is_trusted(pf: Command, image: str, tmp_path: Path, algorithm: str, kind: type) -> None:
    key, other, ref = tmp_path / "release.key", tmp_path / "other.key", f"file://{tmp_path}/registry"
    made = pf("keygen", "--algorithm", algorithm, key, "--json").json
    assert (made["private_key"], made["public_key"], made["encrypted"]) == (str(key), f"{key}.pub", False)
    assert isinstance(serialization.load_pem_private_key(key.read_bytes(), None), kind)
    assert pf("keygen", other).out.splitlines()[0] == f"{other}.pub"
    assert pf("push", image, ref, "--sign", key).code == 0
    there = ("--store", tmp_path / "there")
    pulled = pf("pull", ref, "--trust", f"{key}.pub", "--json", *there).json
    assert (pulled["signature"], pulled["signer"]) == ("verified", made["fingerprint"])
    refused = pf("pull", ref, "--trust", f"{other}.pub", *there)
    assert (refused.code, refused.out) == (4, "")
    assert made["fingerprint"] in refused.line or made["algorithm"] in refused.line
    assert pf("push", image, ref, "--sign", f"{key}.pub").code == 4
    copied = f"file://{tmp_path}/copy"
    assert pf("copy", ref, copied, "--trust", f"{key}.pub", "--sign", other).code == 0
    assert pf("clone", copied, tmp_path / "out", "--trust", f"{other}.pub", *there).code == 0
    shown = pf("pull", copied, *there).out
    assert "self-signed by sha256:" in shown


def test_nothing_is_overwritten(pf: Command, tmp_path: Path) -> None:
    assert pf("keygen", tmp_path / "key").code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("key*")}
    result = pf("keygen", tmp_path / "key")
    assert result.code == 1
    assert "exists" in result.line
    assert {path.name: path.read_bytes() for path in tmp_path.glob("key*")} == before


def test_a_passphrase_comes_from_a_variable(pf: Command, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, ref = tmp_path / "key", f"file://{tmp_path}/registry"
    monkeypatch.setenv("PFIMG_KEY_PASSPHRASE", "correct horse")
    assert pf("keygen", key, "--json").json["encrypted"] is True
    assert b"ENCRYPTED" in key.read_bytes()
    assert pf("push", image, ref, "--sign", key).code == 0
    monkeypatch.setenv("PFIMG_KEY_PASSPHRASE", "wrong horse")
    result = pf("push", image, ref, "--sign", key)
    assert result.code == 4
    assert "passphrase is wrong" in result.line
    assert "horse" not in result.line


def on_a_terminal(*args: object, typed: str) -> str:
    """Runs the command where somebody types; returns what is shown."""
    main, side = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "pfimg", *map(str, args)], stdin=side, stdout=side, stderr=side) as running:
        os.close(side)
        shown = b""
        try:
            while chunk := os.read(main, 4096):
                asked = chunk.lower().count(b": ") if b"assphrase" in shown + chunk or b"confirm" in chunk.lower() else 0
                shown += chunk
                for _ in range(asked):
                    os.write(main, typed.encode() + b"\n")
        except OSError:  # the other side is closed
            pass
        finally:
            os.close(main)
        assert running.wait(60) == 0, shown
    return shown.decode()


def test_a_passphrase_is_asked_for_and_not_shown(image: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shown = on_a_terminal("keygen", key, "--encrypt", typed="tr0ub4dor")
    assert b"ENCRYPTED" in key.read_bytes()
    shown += on_a_terminal("push", image, f"file://{tmp_path}/registry", "--sign", key, typed="tr0ub4dor")
    assert "tr0ub4dor" not in shown
    assert "passphrase of" in shown


def test_without_a_terminal_nothing_is_asked(pf: Command, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pfimg", "keygen", str(tmp_path / "key"), "--encrypt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, list(tmp_path.glob("key*"))) == (2, [])
    assert "PFIMG_KEY_PASSPHRASE" in result.stderr
    assert pf("keygen", tmp_path / "key").code == 0


@pytest.mark.parametrize("name", ["", "#named"])
def test_what_other_tools_check_is_written_out(pf: Command, image: str, tmp_path: Path, name: str) -> None:
    key, ref, out = tmp_path / "key", f"file://{tmp_path}/registry{name}", tmp_path / "out"
    fingerprint = pf("keygen", "--algorithm", "cosign", key, "--json").json["fingerprint"]
    assert pf("push", image, ref, "--sign", key).code == 0
    told = pf("signature", ref, "--save", out, "--json").json
    assert told == {
        "ref": ref,
        "algorithm": "ecdsa-p256-sha256",
        "signer": fingerprint,
        "files": [str(out / name) for name in ("manifest.json", "manifest.json.sig", "manifest.json.b64")],
    }
    manifest = (out / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == image
    public = serialization.load_pem_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(base64.b64decode((out / "manifest.json.b64").read_bytes()), manifest, ec.ECDSA(hashes.SHA256()))
    assert pf("signature", ref, "--save", out).code == 1  # nothing is overwritten
    assert pf("push", image, ref).code == 0
    assert pf("signature", ref).out == "hmac-sha256\n"
    assert pf("signature", f"file://{tmp_path}/nothing").code == 3
