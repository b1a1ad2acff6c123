"""Where credentials for a registry are found; the helpers are programs that run."""

from __future__ import annotations

import base64
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

import pfimg
from pfimg.registries.oci import credentials
from pfimg.registries.oci.credentials import Credentials, find

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "correct horse"


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OCI_BEARER", "OCI_USERNAME", "OCI_PASSWORD", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(values: object) -> Path:
        path = tmp_path / ".docker" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write


def helper(tmp_path: Path, name: str, script: str) -> None:
    """A helper that logs what it is asked, and then does what the script says."""
    path = tmp_path / "bin" / f"docker-credential-{name}"
    path.write_text(f'#!/bin/sh\nread -r asked || true\necho "$1 $asked" >>"{tmp_path}/asked"\n{script}\n')
    path.chmod(0o755)


def answering(tmp_path: Path, name: str, username: str, secret: str) -> None:
    helper(tmp_path, name, "echo '" + json.dumps({"ServerURL": "x", "Username": username, "Secret": secret}) + "'")


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_nobody_knows_any() -> None:
    assert find("registry.example") == Credentials()
    assert not find("registry.example")


def test_secrets_do_not_show() -> None:
    shown = repr(Credentials("me", SECRET, SECRET, SECRET))
    assert "me" in shown
    assert SECRET not in shown


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    config({"auths": {"registry.example": auth("docker", "x")}})
    assert find("registry.example").username == "docker"
    monkeypatch.setenv("OCI_USERNAME", "me")
    monkeypatch.setenv("OCI_PASSWORD", SECRET)
    assert find("registry.example") == Credentials("me", SECRET)
    monkeypatch.setenv("OCI_BEARER", "token")
    assert find("registry.example") == Credentials(bearer="token")
    monkeypatch.setenv("OCI_BEARER", "")
    assert find("registry.example") == Credentials("me", SECRET)


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.example", "registry.example"),
        ("registry.example:5000", "registry.example:5000"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v1/", "registry.example"),
        ("http://registry.example:5000/v2/", "registry.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "index.docker.io"),
    ],
)
def test_keys_of_the_file(config: Any, key: str, host: str) -> None:
    config({"auths": {"elsewhere.example": auth("x", "y"), key: auth("me", SECRET)}})
    assert find(host) == Credentials("me", SECRET)
    assert find("registry.example:1") == Credentials()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": SECRET}, Credentials("me", SECRET)),
        (auth("me", f"{SECRET}:with:colons"), Credentials("me", f"{SECRET}:with:colons")),
        (auth("me", f"{SECRET}\0\0"), Credentials("me", SECRET)),
        ({"auth": "", "identitytoken": "id"}, Credentials(identity_token="id")),
        ({**auth("me", ""), "identitytoken": "id"}, Credentials("me", "", "id")),
        ({"registrytoken": "tok"}, Credentials(bearer="tok")),
        ({}, Credentials()),
    ],
)
def test_entries_of_the_file(config: Any, entry: dict[str, str], expected: Credentials) -> None:
    config({"auths": {"registry.example": entry}})
    assert find("registry.example") == expected


def test_another_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Any) -> None:
    config({"auths": {"registry.example": auth("home", "x")}})
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.example": auth("other", "x")}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert find("registry.example").username == "other"


def test_a_helper_for_the_registry_comes_before_that_for_all(tmp_path: Path, config: Any) -> None:
    answering(tmp_path, "own", "from own", SECRET)
    answering(tmp_path, "all", "<token>", "id")
    config({"credHelpers": {"registry.example:5000": "own"}, "credsStore": "all", "auths": {"registry.example:5000": {}}})
    assert find("registry.example:5000") == Credentials("from own", SECRET)
    assert find("elsewhere.example") == Credentials(identity_token="id")
    assert find("docker.io") == Credentials(identity_token="id")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["get registry.example:5000", "get elsewhere.example", "get https://index.docker.io/v1/"]


@pytest.mark.parametrize(
    "script",
    [
        "echo 'credentials not found in native keychain'; exit 1",
        "echo hello",
        "echo '[]'",
        'echo \'{"Username": "x"}\'',
        "kill $$",
    ],
)
def test_a_helper_that_knows_nothing_is_no_error(
    tmp_path: Path, config: Any, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    helper(tmp_path, "some", f"# {SECRET}\n{script}")
    config({"credsStore": "some", "auths": {"registry.example": auth("me", SECRET)}})
    with caplog.at_level(logging.DEBUG, "pfimg"):
        assert find("registry.example") == Credentials("me", SECRET)
    assert "docker-credential-some" in caplog.text
    assert SECRET not in caplog.text
    assert "hello" not in caplog.text


def test_a_helper_that_is_not_there_is_named(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    config({"credsStore": "nowhere"})
    assert not find("registry.example")
    assert "docker-credential-nowhere" in caplog.text


def test_a_helper_is_a_program_on_the_path_and_nothing_else(tmp_path: Path, config: Any) -> None:
    answering(tmp_path, "x", "me", SECRET)
    config({"credsStore": "/../bin/docker-credential-x"})
    assert not find("registry.example")
    assert not (tmp_path / "asked").exists()


def test_a_helper_that_waits_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Any) -> None:
    monkeypatch.setattr(credentials, "HELPER_SECONDS", 0.2)
    helper(tmp_path, "slow", "exec sleep 60")
    config({"credsStore": "slow"})
    with pytest.raises(pfimg.RegistryTimeout, match=r"docker-credential-slow did not answer for registry\.example"):
        find("registry.example")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"registry.example": {"auth": "Ü"}}}', "[" * 100_000])
def test_a_malformed_file_is_named_and_its_content_is_not(config: Any, text: str) -> None:
    path = config(text)
    with pytest.raises(pfimg.FormatError, match=str(path)) as caught:
        find("registry.example")
    assert "Ü" not in str(caught.value)


@pytest.mark.parametrize("values", [{"auths": []}, {"auths": {"registry.example": "x"}}, {"credHelpers": []}, {"auths": None}])
def test_what_is_strange_in_the_file_is_passed_over(config: Any, values: dict[str, Any]) -> None:
    config(values)
    assert not find("registry.example")
