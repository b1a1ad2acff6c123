"""Requests that fail: how that is told, and when they are made again; for `registries.web`.

A request is repeated when it failed for a passing reason and may be made twice, or cannot have begun to be worked on. Pauses grow
and are jittered, or are what `Retry-After` or `RateLimit` ask for; attempts are counted and their time is bounded (`Patience`).
"""

import email.utils
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, TypeVar

import httpcore
import httpx
import tenacity

from pfimg.errors import BackendError, PfimgError, RegistryTimeout
from pfimg.registries.base import Traffic
from pfimg.registries.connections import Patience, show

T = TypeVar("T")

EXCEPTIONS: Final = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
)
"""What a connection raises."""

# Seconds; growing pauses stop growing at twice that.
_LONGEST: Final = 10
# Too early, too many, or not now; only the first three say that nothing was done.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_BEGUN: Final = frozenset({408, 425, 429})


class Failure(Exception):  # noqa: N818 - it is no error of this package: `error` is
    """A request that failed: how it is told, whether the server may have begun to work on it, and when to come again."""

    def __init__(self, error: PfimgError, *, begun: bool = True, after: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.begun = begun
        self.after = after

    @classmethod
    def of_status(cls, answer: httpx.Response, hint: str | None) -> "Failure":
        """An answer with a status that nobody wants; the hint tells what to do."""
        status = answer.status_code
        try:
            phrase = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            phrase = str(status)
        passing = status in _PASSING
        after = pause_asked_for(status, answer.headers)
        later = "try again later" if after is None else f"try again in {after:,.0f} seconds"
        advice = hint or (later if passing else "")
        message = f"{show(answer.url)}: the server answered {phrase}{advice and ': '}{advice}"
        error = BackendError(message, status=status, retryable=passing)
        return cls(error, begun=status not in _NOT_BEGUN, after=after)

    @classmethod
    def of_exception(cls, error: Exception, url: httpx.URL, patience: Patience) -> "Failure":
        """One of `EXCEPTIONS`."""
        where = show(url)
        reason = error.args[0] if error.args else None  # what the system or TLS said
        match error:
            case httpcore.ConnectTimeout():
                message = f"{where}: no connection in {patience.connect:g} seconds: check the address and the network"
                return cls(RegistryTimeout(message, retryable=True), begun=False)
            case httpcore.TimeoutException():
                slow = f"passed less than {patience.least:,} bytes in {patience.window:g}"
                message = f"{where}: the server was silent for {patience.silence:g} seconds, or {slow}: try again later"
                return cls(RegistryTimeout(message, retryable=True))
            case httpcore.ConnectError() if isinstance(reason, ssl.SSLCertVerificationError):
                text = f"its certificate is not trusted ({reason.verify_message}): name its authority by SSL_CERT_FILE"
            case httpcore.ConnectError() if isinstance(reason, socket.gaierror):
                message = f"{where}: the name of the host is not known: check the address"
                return cls(BackendError(message, code="unreachable", retryable=reason.errno == socket.EAI_AGAIN), begun=False)
            case httpcore.ConnectError():
                text = reason.strerror if isinstance(reason, OSError) and reason.strerror else "TLS failed"
                message = f"{where}: no connection: {text.lower()}: check the address"
                return cls(BackendError(message, code="unreachable", retryable=True), begun=False)
            case httpcore.NetworkError() | httpcore.RemoteProtocolError():
                text = " ".join(str(error).split())[:200] or type(error).__name__
                return cls(BackendError(f"{where}: the connection broke off: {text}", retryable=True))
            case httpcore.ProxyError():
                text = "the proxy refuses: check the proxy variables"
            case httpcore.LocalProtocolError() | UnicodeEncodeError():
                text = "the request cannot be sent: a token or password has characters that do not belong there"
            case _:
                text = "this is no address of a web server, or redirects to none"
        return cls(BackendError(f"{where}: {text}"))

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed when it is made again."""
        return isinstance(self.error, BackendError) and self.error.retryable


class Retries:
    """Makes requests, and makes them again; may be used by many threads."""

    def __init__(self, patience: Patience, traffic: Traffic) -> None:
        self._patience = patience
        self._traffic = traffic
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Keeps the requests that are under way from being made again."""
        with self._lock:
            stopped, self._stopped = self._stopped, threading.Event()
        stopped.set()

    def run(self, attempt: Callable[[], T], repeatable: bool) -> T:
        """Calls `attempt` until it does not raise Failure, or no more; then what the last one tells is raised."""
        stopped = self._stopped
        pause, attempts, budget = self._patience.pause, self._patience.attempts, self._patience.budget
        growing = tenacity.wait_exponential(pause, _LONGEST) + tenacity.wait_random_exponential(pause, _LONGEST)

        def may_repeat(error: BaseException) -> bool:
            return isinstance(error, Failure) and error.passing and (repeatable or not error.begun) and not stopped.is_set()

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return growing(state) + (error.after or 0 if isinstance(error, Failure) else 0)

        def sleep(seconds: float) -> None:
            if stopped.wait(seconds):
                raise Failure(BackendError("a request was stopped that waited to be made again"))

        def count(_: tenacity.RetryCallState) -> None:
            with self._lock:
                self._traffic.retries += 1

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_repeat),
            wait=wait,
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_before_delay(budget),
            before_sleep=count,
            sleep=sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Failure as failure:
            raise failure.error from failure.__cause__


def pause_asked_for(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: by `Retry-After`, or by what is left of a window whose requests are used up.

    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    """
    text = headers.get("Retry-After")
    if text is None:
        used_up = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit") or "")
        return float(used_up[1]) if used_up and status == HTTPStatus.TOO_MANY_REQUESTS else None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
