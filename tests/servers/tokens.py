"""The service that a registry sends its clients to for a token: what "Bearer" in WWW-Authenticate asks for.

It follows https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/: GET with basic credentials or none, or
POST with a password or a refresh token. Who proves to be `USER` gets all that is asked for, others get `pull` only, and wrong
credentials get 401. Clients must understand both `token`, which GET answers with, and `access_token`, which POST does.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = "tester"
PASSWORD = "correct horse"
# How often the thread looks whether it is to end.
POLL_SECONDS = 0.05


class TokenRequest(NamedTuple):
    """What a client asked for; `user` is empty if it gave no credentials, and `granted` says whether it got a token."""

    method: str
    user: str
    service: str
    scopes: list[str]
    granted: bool


@dataclass
class TokenService:
    """Gives tokens that are signed with a key of its own (ES256).

    Attributes:
        realm: Where clients are to ask.
        service: What tokens are for.
        refresh_token: Stands for user and password.
        lifetime: Of tokens that are given from now on, in seconds; below -60 they have expired (so much do registries forgive).
        requests: All that were made, in order.

    """

    realm: str
    service: str = "pfimg-tests"
    refresh_token: str = field(default_factory=lambda: secrets.token_hex(16))
    lifetime: int = 300
    requests: list[TokenRequest] = field(default_factory=list)
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)
    _key_id: str = field(default_factory=lambda: secrets.token_hex(8), repr=False)

    def jwks(self) -> bytes:
        """The public key, as a registry wants it (RFC 7517)."""
        point = self._key.public_key().public_numbers()
        coordinates = {name: _base64(value.to_bytes(32, "big")) for name, value in (("x", point.x), ("y", point.y))}
        key = {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self._key_id, **coordinates}
        return json.dumps({"keys": [key]}).encode()

    def token(self, user: str, scopes: list[str]) -> str:
        """Makes a token (RFC 7519)."""
        now = int(time.time())
        claims = {
            "iss": self.service,
            "aud": self.service,
            "sub": user,
            "jti": secrets.token_hex(8),
            "iat": now,
            "nbf": now + min(self.lifetime, 0),
            "exp": now + self.lifetime,
            "access": [_access(scope, user) for scope in scopes],
        }
        header = {"typ": "JWT", "alg": "ES256", "kid": self._key_id}
        text = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def by_get(self, query: dict[str, list[str]], authorization: str) -> tuple[int, dict[str, Any]]:
        """Answers GET: status and document."""
        user, password = "", ""
        if authorization:
            scheme, _, credentials = authorization.partition(" ")
            user, _, password = base64.b64decode(credentials).decode().partition(":")
            if scheme.lower() != "basic" or not user:
                return 400, {"details": "basic credentials, or none"}
        scopes = [scope for value in query.get("scope", []) for scope in value.split()]
        known = not user or (user, password) == (USER, PASSWORD)
        return self._answer("GET", "token", user, known, query, scopes)

    def by_post(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """Answers POST: status and document."""
        scopes = form.get("scope", [""])[0].split()
        if form.get("grant_type") == ["refresh_token"]:
            return self._answer("POST", "access_token", USER, form.get("refresh_token") == [self.refresh_token], form, scopes)
        user = form.get("username", [""])[0]
        known = form.get("grant_type") == ["password"] and (user, form.get("password")) == (USER, [PASSWORD])
        return self._answer("POST", "access_token", user, known, form, scopes)

    def _answer(
        self, method: str, field: str, user: str, known: bool, query: dict[str, list[str]], scopes: list[str]
    ) -> tuple[int, dict[str, Any]]:
        service = query.get("service", [""])[0]
        granted = known and service == self.service
        self.requests.append(TokenRequest(method, user, service, scopes, granted))
        if not known:
            return 401, {"details": "wrong credentials"}
        if not granted:
            return 400, {"details": f"service must be {self.service}"}
        return 200, {field: self.token(user, scopes), "expires_in": self.lifetime}


def _access(scope: str, user: str) -> dict[str, Any]:
    """What a scope such as "repository:some/name:pull,push" gives to the user."""
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": kind, "name": name, "actions": [action for action in actions.split(",") if user or action == "pull"]}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def token_service() -> Iterator[TokenService]:
    """Runs the service in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            self.answer(*tokens.by_get(query, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            self.answer(*tokens.by_post(parse_qs(form)))

        def answer(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: `requests` tells."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        tokens = TokenService(f"http://127.0.0.1:{server.server_address[1]}/token")
        thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True)
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()
