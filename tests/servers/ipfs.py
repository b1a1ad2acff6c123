"""Kubo, the IPFS daemon, alone in the world: no peers, no network but 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.servers import binaries, process
from tests.servers.client import request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# `test` is ports of its own choice and no peers, `autoconf-off` no settings from the network, the last how files become blocks.
PROFILES = "test,autoconf-off,unixfs-v1-2025"


@dataclass(frozen=True)
class Kubo:
    """A daemon: URLs of its RPC API (without `/api/v0`) and of its gateway, and its repository."""

    api: str
    gateway: str
    repo: Path
    program: Path

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> bytes:
        """Runs `ipfs`, which talks to this daemon, and gives what it writes."""
        return _ipfs(self.program, self.repo, *arguments, stdin=stdin)


def _environment(repo: Path) -> dict[str, str]:
    return {"IPFS_PATH": str(repo), "HOME": str(repo.parent), "IPFS_TELEMETRY": "off"}


def _ipfs(program: Path, repo: Path, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    env = {"PATH": os.environ.get("PATH", os.defpath), **_environment(repo)}
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, env=env, timeout=60, check=False)
    if done.returncode != 0:
        raise process.ServerFailed(f"ipfs {arguments[0]} ended with status {done.returncode}", done.stderr.decode())
    return done.stdout


@contextmanager
def kubo(*, offline: bool = True) -> Iterator[Kubo]:
    """A daemon with an empty repository; online it has an open port for peers, but knows none."""
    program = binaries.get("kubo")
    with process.scratch("kubo") as directory:
        repo = directory / "repo"
        _ipfs(program, repo, "init", "--empty-repo", "--algorithm=ed25519", f"--profile={PROFILES}")

        def ready() -> Kubo | None:
            # It picks ports itself, and writes here which.
            host, _, port = (repo / "api").read_text().strip().removeprefix("/ip4/").partition("/tcp/")
            found = Kubo(f"http://{host}:{port}", (repo / "gateway").read_text().strip(), repo, program)
            return found if request(f"{found.api}/api/v0/version", "POST").status == 200 else None

        command: list[str | Path] = [program, "daemon", *(["--offline"] if offline else [])]
        with process.running(command, directory, ready, env=_environment(repo)) as server:
            yield server
