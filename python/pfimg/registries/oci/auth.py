"""How a registry is convinced: what its `WWW-Authenticate` asks for, and the `Authorization` that answers it.

The first request has none. Where the registry then asks for a password, it gets one with every request; where it sends to a
token service (https://distribution.github.io/distribution/spec/auth/token/), the tokens from there are kept by what they are for,
and fetched again shortly before they expire, and when the registry refuses one, which may happen in the middle of a push.

Credentials are looked up only when they are asked for, and anonymous tokens are asked for where there are none.
"""

import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list

from pfimg.errors import BackendError
from pfimg.registries.connections import is_loopback
from pfimg.registries.oci.credentials import Credentials
from pfimg.registries.web import WebClient, basic

# What a token is good for where its service does not say; the specification's number.
_LIFETIME_SECONDS: Final = 60
# So long before its end a token is fetched anew, or after nine tenths of its life where that is short.
_MARGIN_SECONDS: Final = 15
_TOKEN_BYTES: Final = 1 << 20

Scopes = tuple[str, ...]
"""What a token is to be good for, such as `repository:agents/one:pull,push`."""


class Challenge(NamedTuple):
    """What a registry asks for: a scheme in lower case, and its parameters by their name in lower case."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """Reads the value of `WWW-Authenticate`; several such headers are one, joined by commas (RFC 9110, 11.6.1).

    Example:
        >>> from pfimg.registries.oci.auth import challenges
        >>> challenges('Bearer realm="https://auth.example/token",service="registry", Basic realm="x"')[0].scheme
        'bearer'
    """
    found: list[Challenge] = []
    for part in parse_http_list(header):
        item = part
        word, _, rest = item.partition(" ")
        if "=" not in word and not rest.lstrip().startswith("="):
            found.append(Challenge(word.lower(), {}))
            item = rest
        name, equals, value = item.partition("=")
        value = value.strip()
        if equals and found:
            found[-1].parameters.setdefault(name.strip().lower(), value[1:-1] if value[:1] == '"' == value[-1:] else value)
    return found


class _Token(NamedTuple):
    text: str
    renew: float
    """When to fetch another, by the monotonic clock."""


class Authorization:
    """The `Authorization` for one registry. May be used by many threads, of which one at a time fetches a token.

    Args:
        client: For requests to the token service.
        name: Of the registry, for messages.
        private: Whether nobody on the way to the registry can read what is sent; it gets no credentials otherwise.
        find: Gives the credentials; called when the registry asks for some, once.
    """

    def __init__(self, client: WebClient, name: str, find: Callable[[], Credentials], *, private: bool) -> None:
        self._client = client
        self._name = name
        self._private = private
        self._find = find
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._credentials = Credentials()
        self._tokens: dict[Scopes, _Token] = {}

    @property
    def is_anonymous(self) -> bool:
        """Whether there are no credentials, as far as they have been asked for."""
        return not self._credentials

    def header(self, scopes: Scopes) -> str | None:
        """The value of `Authorization` for a request; None as long as none was asked for."""
        if (asked := self._challenge) is None:
            return None
        with self._lock:
            return self._header(asked, scopes)

    def renew(self, scopes: Scopes, refused: str | None, header: str) -> bool:
        """Told of a 401: returns whether to try again, with what `header` gives then.

        Args:
            scopes: What the request was for.
            refused: The `Authorization` that the request had.
            header: `WWW-Authenticate` of the answer; empty where it is not known.
        """
        with self._lock:
            asked = self._challenge
            if asked is None:
                if (asked := _answerable(challenges(header))) is None:
                    return False
                if not self._private:
                    message = f"{self._name} asks for credentials, which are not sent in clear: it has to be spoken to by https"
                    raise BackendError(message, status=HTTPStatus.UNAUTHORIZED)
                self._credentials = self._find()
                self._challenge = asked
            elif self._header(asked, scopes) == refused:
                self._tokens.pop(scopes, None)
            answer = self._header(asked, scopes)
            return answer is not None and answer != refused

    def _header(self, asked: Challenge, scopes: Scopes) -> str | None:
        if self._credentials.bearer:
            return f"Bearer {self._credentials.bearer}"
        if asked.scheme == "basic":
            known = self._credentials
            return basic(known.username, known.password) if known.username else None
        token = self._tokens.get(scopes)
        if token is None or time.monotonic() >= token.renew:
            token = self._tokens[scopes] = self._fetch(asked.parameters, scopes)
        return f"Bearer {token.text}"

    def _fetch(self, asked: dict[str, str], scopes: Scopes) -> _Token:
        """Fetches a token: with an identity token by POST, with a password or nothing by GET."""
        realm, known = asked["realm"], self._credentials
        shown = urlsplit(realm)._replace(query="", fragment="").geturl()
        parts = urlsplit(realm)
        if known and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            message = (
                f"{self._name} sends for tokens to {shown}, where credentials would go in clear: it has to name one on https"
            )
            raise BackendError(message)
        form = [("service", asked["service"])] if "service" in asked else []
        start = time.monotonic()
        # Not followed anywhere: the form has a secret.
        accept = (200, 307, 308, 400, 401, 403, 404)
        if known.identity_token:
            form += [("grant_type", "refresh_token"), ("client_id", "pfimg"), ("refresh_token", known.identity_token)]
            content = urlencode([*form, ("scope", " ".join(scopes))]).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            reply = self._client.request(
                "POST", realm, headers=headers, content=content, accept=accept, limit=_TOKEN_BYTES, repeatable=True
            )
        else:
            query = urlencode([*form, *(("scope", scope) for scope in scopes)])
            url = f"{realm}{'&' if parts.query else '?'}{query}"
            headers = {"Authorization": basic(known.username, known.password)} if known.username else {}
            reply = self._client.request("GET", url, headers=headers, accept=accept, limit=_TOKEN_BYTES)
        if reply.status != HTTPStatus.OK:
            whose = "these credentials" if known else "anybody without credentials"
            message = f"{shown} gives {whose} no token for {self._name} (status {reply.status}): {HOW_TO_LOG_IN}"
            raise BackendError(message, status=reply.status)
        try:
            values = json.loads(reply.content)
            text = values.get("token") or values["access_token"]
            lifetime = float(values.get("expires_in") or _LIFETIME_SECONDS)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BackendError(f"{shown} answers for {self._name} with what is no token", status=reply.status) from None
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise BackendError(f"{shown} answers for {self._name} with what is no token", status=reply.status)
        return _Token(text, start + max(lifetime - _MARGIN_SECONDS, 0.9 * lifetime))


def _answerable(asked: list[Challenge]) -> Challenge | None:
    """The challenge that can be answered; tokens before passwords."""
    for challenge in asked:
        if challenge.scheme == "bearer" and "realm" in challenge.parameters:
            return challenge
    return next((challenge for challenge in asked if challenge.scheme == "basic"), None)


HOW_TO_LOG_IN: Final = "log in with docker login, or set OCI_USERNAME and OCI_PASSWORD, or OCI_BEARER"
