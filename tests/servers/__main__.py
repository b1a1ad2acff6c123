"""Gets the servers' programs (`get`), or runs one server until Ctrl-C and tells how to reach it (`run`)."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import servers
from tests.servers import binaries

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

SERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "minio": servers.minio,
    "versitygw": servers.versitygw,
    "distribution": servers.distribution,
    "distribution-basic": partial(servers.distribution, "basic"),
    "distribution-token": partial(servers.distribution, "token"),
    "distribution-tls": partial(servers.distribution, tls=True),
    "kubo": servers.kubo,
    "azurite": servers.azurite,
    "nginx": partial(servers.nginx, Path()),
}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def get(names: list[str]) -> None:
    for name in names or binaries.SOURCES:
        print(binaries.get(name, say))


def run(name: str) -> None:
    # Known before the server starts, so that Ctrl-C ends it in any case.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with SERVERS[name]() as server:
        for field in fields(server):
            print(f"{field.name:12}{getattr(server, field.name)}", flush=True)
        say("Ctrl-C ends it")
        signal.sigwait(stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    getter = commands.add_parser("get", help="build what is missing")
    getter.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(binaries.SOURCES)}")
    runner = commands.add_parser("run", help="run a server; nginx serves the working directory")
    runner.add_argument("name", choices=SERVERS)
    arguments = parser.parse_args()
    try:
        if arguments.command == "get":
            get(arguments.names)
        else:
            run(arguments.name)
    except (servers.Unavailable, servers.ServerFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
