"""Credentials for an OCI registry: what is given, what the environment has, or what `docker login` has kept.

In this order, the first that has any for the registry counts:

1. what the caller gives;
2. `OCI_BEARER`, or `OCI_USERNAME` and `OCI_PASSWORD`;
3. `config.json` in `DOCKER_CONFIG`, or else in `~/.docker`: the credential helper that it names for the registry, the one that
   it names for all of them, its own entries.

A helper is a program, `docker-credential-<name>`, that is given the registry's name and answers with a user and a secret.

Limits: nothing is ever written there. What a helper or the file says is in no message.
"""

import json
import logging
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pfimg import config
from pfimg.errors import FormatError, RegistryTimeout

_log = logging.getLogger("pfimg")

HELPER_SECONDS: Final = 30
"""How long a credential helper may take; some ask their user."""

_CONFIG_BYTES: Final = 8 << 20
# Docker Hub goes by several names, and by this one in files.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
HUB_ADDRESS: Final = "registry-1.docker.io"
"""Where Docker Hub is spoken to."""

# What a helper gives in place of a user when the secret is an identity token.
_TOKEN_USER: Final = "<token>"  # noqa: S105 - says that one follows


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves to a registry, or to its token service, who asks. Secrets do not show in `repr`.

    Attributes:
        username: With `password`.
        password: With `username`.
        identity_token: Is exchanged for tokens in place of a password.
        bearer: A token that the registry takes as it is.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.bearer)


def is_hub(host: str) -> bool:
    """Whether a host is Docker Hub."""
    return host in _HUB


def find(host: str) -> Credentials:
    """The credentials for a registry, from the environment or where docker keeps them.

    Args:
        host: Name of the registry, with its port if it has one.

    Raises:
        FormatError: Docker's file is malformed.
        RegistryTimeout: A helper did not end.
    """
    bearer, username, password = config.oci_credentials()
    if bearer:
        return Credentials(bearer=bearer)
    if username:
        return Credentials(username, password or "")
    return _of_docker(host)


def _of_docker(host: str) -> Credentials:
    path = config.docker_config()
    values = _read(path)
    names = [_HUB_KEY, *sorted(_HUB)] if is_hub(host) else [host]
    for helper, name in _helpers(values, names):
        if found := _ask(helper, name):
            return found
    auths = values.get("auths")
    for key, entry in auths.items() if isinstance(auths, dict) else ():
        if _host_of(key) in map(_host_of, names) and isinstance(entry, dict) and (found := _of_entry(entry, path, key)):
            return found
    return Credentials()


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values: Any = json.loads(file.read(_CONFIG_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        # What is wrong in it may be a secret.
        raise FormatError(f"{path} is not a JSON object: repair it, or name another directory by DOCKER_CONFIG", path=path)
    return values


def _host_of(key: str) -> str:
    """The host in a key such as `https://host:port/v1/`."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _of_entry(entry: dict[str, Any], path: Path, key: str) -> Credentials:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            username, _, password = b64decode(str(auth), validate=True).decode().partition(":")
        except ValueError:
            raise FormatError(f"{path}: the auth of {key!r} is not base64: log in again", path=path) from None
    identity, bearer = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    # Docker writes NUL after passwords at times.
    return Credentials(username, password.strip("\0"), identity, bearer)


def _helpers(values: dict[str, Any], names: list[str]) -> Iterator[tuple[str, str]]:
    """Helpers to ask, each with the name to ask for."""
    own = values.get("credHelpers")
    for name in names:
        if isinstance(own, dict) and (helper := own.get(name)):
            yield str(helper), name
    if store := values.get("credsStore"):
        yield str(store), names[0]


def _ask(helper: str, name: str) -> Credentials:
    """What a helper knows. One that fails or is not there counts as one that knows nothing: many images need no credentials."""
    program = f"docker-credential-{helper}"
    found = shutil.which(program) if os.sep not in helper else None
    if found is None:
        _log.warning("%s, which docker's config.json names for %s, is not on PATH: no credentials from there", program, name)
        return Credentials()
    try:
        done = subprocess.run([found, "get"], input=name.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False)  # noqa: S603 - docker's own protocol; the name is the user's setting
    except subprocess.TimeoutExpired:
        message = f"{program} did not answer for {name} in {HELPER_SECONDS} seconds: does it wait for you?"
        raise RegistryTimeout(message) from None
    except OSError as error:
        _log.warning("%s cannot be run: %s: no credentials from there", program, error.strerror)
        return Credentials()
    if done.returncode:
        _log.debug("%s knows nothing of %s", program, name)
        return Credentials()
    try:
        values = json.loads(done.stdout)
        username, secret = str(values["Username"]), str(values["Secret"])
    except (ValueError, TypeError, KeyError):
        _log.warning("%s answered for %s with what is no credentials", program, name)
        return Credentials()
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
