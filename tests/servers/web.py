"""nginx, serving a directory."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.servers import binaries, certificates, process, tokens
from tests.servers.client import request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = """
daemon off;
pid nginx.pid;
lock_file nginx.lock;
error_log stderr;
worker_processes 1;
{user}
events {{ }}
http {{
    default_type application/octet-stream;
    log_format line '$request_method $request_uri $status "$http_range"';
    access_log access.log line;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    server {{
        listen 127.0.0.1:{port} {ssl};
        {certificates}
        root "{root}";
        {auth}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A web server; `user` and `password` are empty where it asks for none, `ca` signs its certificate."""

    root: Path
    url: str
    access_log: Path
    user: str = ""
    password: str = ""
    ca: Path | None = None

    def requests(self) -> list[str]:
        """What was asked so far, a line each: `GET /path 206 "bytes=0-9"`, the last being the Range or "-"."""
        return self.access_log.read_text().splitlines()


@contextmanager
def nginx(root: Path, *, auth: bool = False, tls: bool = False) -> Iterator[Nginx]:
    """Serves the files below `root`, also such as appear or change later."""
    program = binaries.nginx()
    # The socket is made here and handed down, as nginx does when it replaces its own program: the port is its from the start.
    with process.scratch("nginx") as directory, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        files = certificates.make(directory) if tls else None
        (directory / "htpasswd").write_text(f"{tokens.USER}:{{PLAIN}}{tokens.PASSWORD}\n")
        (directory / "settings").write_text(
            SETTINGS.format(
                # Started by root it would read as somebody else, whom temporary directories are closed to.
                user="user root root;" if os.geteuid() == 0 else "",
                port=port,
                root=root.resolve(),
                ssl="ssl" if files else "",
                certificates=f'ssl_certificate "{files.certificate}"; ssl_certificate_key "{files.key}";' if files else "",
                auth='auth_basic "tests"; auth_basic_user_file htpasswd;' if auth else "",
            )
        )
        ca = files.ca if files else None
        credentials = (tokens.USER, tokens.PASSWORD) if auth else ("", "")
        server = Nginx(root, f"http{'s' if tls else ''}://127.0.0.1:{port}", directory / "access.log", *credentials, ca)

        def ready() -> Nginx:
            listener.close()  # it has it by now; held here too, the port would seem to work if it ended
            request(f"{server.url}/", ca=ca)
            return server

        command: list[str | Path] = [program, "-p", directory, "-c", directory / "settings", "-e", "stderr"]
        env = {"NGINX": f"{listener.fileno()};"}
        with process.running(command, directory, ready, env=env, pass_fds=[listener.fileno()]):
            yield server
