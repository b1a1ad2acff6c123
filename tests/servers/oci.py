"""The registry of the CNCF distribution project, as registries are met: open, with a password, with tokens, with TLS."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.servers import binaries, certificates, process, tokens
from tests.servers.client import request

if TYPE_CHECKING:
    from collections.abc import Iterator

# `PASSWORD`, hashed by bcrypt with the least cost: it is checked with each request.
HTPASSWD = f"{tokens.USER}:$2b$04$pfimgTestsAndNothingEeGyK7WPtkZp5gJpaTMPiizlIO0B0vfYe\n"


@dataclass(frozen=True)
class OciServer:
    """A registry; `user` and `password` are empty where it asks for none, `ca` signs its certificate, `data` is its storage."""

    host: str
    port: int
    base_url: str
    user: str = ""
    password: str = ""
    ca: Path | None = None
    tokens: tokens.TokenService | None = None
    data: Path = Path()

    @property
    def registry(self) -> str:
        """As in the name of an image: `registry/repository:tag`."""
        return f"{self.host}:{self.port}"

    def repository(self) -> str:
        """A name that nobody uses yet."""
        return f"tests/{secrets.token_hex(8)}"


@contextmanager
def distribution(
    auth: Literal["none", "basic", "token"] = "none", *, tls: bool = False, delete: bool = True
) -> Iterator[OciServer]:
    """A registry on one directory, which allows to delete blobs and manifests or not."""
    program = binaries.get("distribution")
    with process.scratch("distribution") as directory, ExitStack() as stack:
        http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": secrets.token_hex(16)}
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": delete}},
            "http": http,
        }
        ca = None
        if tls:
            files = certificates.make(directory)
            ca = files.ca
            http["tls"] = {"certificate": str(files.certificate), "key": str(files.key)}
        service = None
        if auth == "basic":
            (directory / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
        elif auth == "token":
            service = stack.enter_context(tokens.token_service())
            (directory / "jwks.json").write_bytes(service.jwks())
            names = {"realm": service.realm, "service": service.service, "issuer": service.service}
            settings["auth"] = {"token": {**names, "jwks": str(directory / "jwks.json")}}
        # Any JSON document is a YAML document.
        (directory / "settings.yml").write_text(json.dumps(settings))

        def ready() -> OciServer | None:
            # It picks a port itself, and only its log tells which.
            found = re.search(r"listening on 127\.0\.0\.1:(\d+)", (directory / "log").read_text(errors="replace"))
            if found is None:
                return None
            url = f"http{'s' if tls else ''}://127.0.0.1:{found[1]}"
            expected = 200 if auth == "none" else 401
            if request(f"{url}/v2/", ca=ca).status != expected:
                return None
            credentials = ("", "") if auth == "none" else (tokens.USER, tokens.PASSWORD)
            return OciServer("127.0.0.1", int(found[1]), url, *credentials, ca, service, directory / "data")

        # Without this it would look for a collector of traces.
        env = {"OTEL_TRACES_EXPORTER": "none"}
        yield stack.enter_context(process.running([program, "serve", directory / "settings.yml"], directory, ready, env=env))
