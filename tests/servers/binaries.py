"""Where the servers' programs come from: built once from their published sources, kept outside the tree.

Go builds them at the versions below, checked against its checksum database, and without C, so that no compiler for it is needed.
Each lands under its name and version in one step, and under a lock: processes that want the same program build it once. Azurite
is a program for Node, which npm installs likewise. nginx is not built: the system has it, or has not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], object]


@dataclass(frozen=True)
class Source:
    """A Go module, and the package in it that is the program."""

    module: str
    version: str
    package: str = ""


@dataclass(frozen=True)
class Package:
    """A package of npm, and its script that is the program."""

    name: str
    version: str
    script: str


SOURCES: dict[str, Source | Package] = {
    # Its releases have names that Go does not take for versions; this is its last commit.
    "minio": Source("github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c"),
    "versitygw": Source("github.com/versity/versitygw", "v1.8.0", "/cmd/versitygw"),
    "distribution": Source("github.com/distribution/distribution/v3", "v3.0.0", "/cmd/registry"),
    "kubo": Source("github.com/ipfs/kubo", "v0.43.0", "/cmd/ipfs"),
    # No server, but what others check signatures with.
    "cosign": Source("github.com/sigstore/cosign/v2", "v2.6.5", "/cmd/cosign"),
    "azurite": Package("azurite", "3.35.0", "azurite-blob"),
}
# What the newest of them asks for.
GO_VERSION = "1.26.5"
# Between two words on how far a build is.
PROGRESS_SECONDS = 10


class Unavailable(Exception):  # noqa: N818 - no error of this code: a machine without the means
    """A server cannot be had here; says why."""


def cached(name: str) -> Path:
    """Where a program is, or will be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pfimg-servers" / f"{name}-{SOURCES[name].version}"


def get(name: str, say: Say = print) -> Path:
    """Gives the program, building or installing it if it is not there.

    Raises:
        Unavailable: What it takes for that is not there, or failed.

    """
    program = cached(name)
    if program.exists():
        return program
    source = SOURCES[name]
    tool, where = ("go", "https://go.dev/dl") if isinstance(source, Source) else ("npm", "apt-get install nodejs npm")
    found = shutil.which(tool)
    if found is None:
        raise Unavailable(f"{name} is not there, nor is {tool} ({where}) to get it with")
    program.parent.mkdir(parents=True, exist_ok=True)
    with _locked(program.with_name(f".{name}.lock"), lambda: say(f"{name}: another process is getting it; waiting")):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=program.parent, prefix=f".{name}-") as scratch:
                if isinstance(source, Source):
                    _build(found, name, source, Path(scratch), say)
                else:
                    _install(found, name, source, Path(scratch), say)
                os.rename(Path(scratch) / name, program)
    return program


@contextmanager
def _locked(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(go: str, name: str, source: Source, scratch: Path, say: Say) -> None:
    start = said = time.monotonic()
    say(f"{name} {source.version}: building from source, once (minutes)")
    # In a module of our own that requires it: `go install` would ask for the list of all versions, which a proxy need not have.
    (scratch / "go.mod").write_text(f"module servers\n\ngo {GO_VERSION}\n\nrequire {source.module} {source.version}\n")
    # It is for this machine, whatever a person's settings are.
    env = {key: value for key, value in os.environ.items() if key not in {"GOOS", "GOARCH"}}
    env |= {"CGO_ENABLED": "0", "GOWORK": "off"}
    command = [go, "build", "-mod=mod", "-v", "-trimpath", "-ldflags=-s -w", "-o", name, f"{source.module}{source.package}"]
    last: deque[str] = deque(maxlen=15)
    with subprocess.Popen(command, cwd=scratch, env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as build:
        assert build.stderr is not None
        for count, line in enumerate(build.stderr, start=1):
            last.append(line)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                say(f"{name}: {count} packages after {said - start:.0f} s: {line.strip()}")
    if build.returncode != 0:
        raise Unavailable(f"{name} {source.version} could not be built:\n{''.join(last)}")
    say(f"{name}: built in {time.monotonic() - start:.0f} s")


def _install(npm: str, name: str, package: Package, scratch: Path, say: Say) -> None:
    say(f"{name} {package.version}: installing, once")
    command = [
        npm,
        "install",
        "--no-audit",
        "--no-fund",
        "--no-save",
        f"--prefix={scratch / name}",
        f"{package.name}@{package.version}",
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{name} {package.version} could not be installed:\n{done.stderr[-2000:]}")


def nginx() -> Path:
    """Gives the system's nginx, which Debian keeps where only root looks.

    Raises:
        Unavailable: It is not installed.

    """
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if found is None:
        raise Unavailable("nginx is not there: apt-get install nginx")
    return Path(found)
