"""What the Hub's refusals mean: one line that names the item and says what to do, and a word for programs.

The Hub tells a reason in headers (`X-Error-Code`, `X-Error-Message`). Whoever may not see a repository is told that there is
none, so that the two cannot be told apart by anybody. Of what is said here, no part is a credential or an address with a query.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from pfimg.errors import BackendError, PfimgError, RegistryTimeout
from pfimg.registries.retries import Failure, pause_asked_for

# What the client raises: its own errors are also those of its HTTP library, which is another one from version 2 on.
_HTTP_ERROR: Final[type[Exception]] = HfHubHTTPError.__mro__[1]
EXCEPTIONS: Final = (_HTTP_ERROR, OSError, RuntimeError, ValueError)
"""What calls of the client raise."""

ABSENT: Final = frozenset({"no_repo", "no_revision"})
"""Codes of what is not there at all."""

_MESSAGE: Final = 200
_CONFLICTS: Final = frozenset({409, 412})
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_BEGUN: Final = frozenset({408, 425, 429})
_LIMITS: Final = frozenset({402, 403, 413})
_QUOTA: Final = re.compile(r"storage (?:limit|quota|space)|\bquota\b|exceeded your .*(?:limit|storage)|payment", re.IGNORECASE)
_FULL: Final = re.compile(r"too many (?:files|entries)", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"https?://\S+")

_WRONG_TOKEN: Final = ("credentials", "the token is wrong or has expired: check HF_TOKEN")
_NO_TOKEN: Final = ("no_credentials", "there is no such repository that everybody may read: put a token into HF_TOKEN")
_CONFLICT: Final = ("conflict", "others keep changing the repository: try again later")
_BY_CODE: Final = {
    "GatedRepo": ("gated", "the repository is gated: ask for access on its page"),
    "RevisionNotFound": ("no_revision", "there is no image: the repository has no branch, tag or commit of that name"),
    "RepoNotFound": ("no_repo", "there is no image: the repository does not exist, or this token may not see it"),
}
_BY_STATUS: Final = {
    403: ("forbidden", "this token does not allow that"),
    409: _CONFLICT,
    412: _CONFLICT,
    429: ("rate_limit", "too many requests"),
}


def refusal(status: int, headers: Mapping[str, str], item: str, endpoint: str, *, token: bool) -> Failure:
    """What an answer means that nobody wants.

    Args:
        status: Of the answer.
        headers: Likewise; names in any case.
        item: What was asked for, for the message.
        endpoint: Who answered.
        token: Whether a token was sent along.
    """
    said = _line(headers.get("X-Error-Message") or "")
    code, reason = _reason(status, headers.get("X-Error-Code") or "", said, token=token)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        reason = f"{reason}{_window(headers)}"
    elif code in ("backend", "forbidden") and said:
        reason = f"{reason}: {said}"
    error = BackendError(
        f"{item}: {reason} ({endpoint} answered {status})",
        code=code,
        status=status,
        retryable=status in _PASSING or status in _CONFLICTS,
    )
    return Failure(error, begun=status not in _NOT_BEGUN, after=pause_asked_for(status, headers))


def understand(error: Exception, item: str, endpoint: str) -> Failure:
    """What one of `EXCEPTIONS` means, which a call with a token has raised."""
    if isinstance(error, PfimgError):
        return Failure(error)
    if isinstance(error, HfHubHTTPError):
        answer = error.response
        return refusal(answer.status_code, answer.headers, item, endpoint, token=True)
    if isinstance(error, OfflineModeIsEnabled):
        return Failure(BackendError(f"{item}: HF_HUB_OFFLINE is set, so that the Hub is not asked: unset it", code="offline"))
    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, EXCEPTIONS):
        return understand(cause, item, endpoint)
    kind = type(error).__name__
    if "Timeout" in kind:
        message = f"{item}: {endpoint} does not answer: check the address and the network"
        return Failure(RegistryTimeout(message, retryable=True))
    if kind == "ConnectError":
        message = f"{item}: no connection to {endpoint}: check the endpoint and the network"
        return Failure(BackendError(message, code="unreachable", retryable=True), begun=False)
    if isinstance(error, _HTTP_ERROR):
        return Failure(BackendError(f"{item}: the connection to {endpoint} broke off: try again later", retryable=True))
    return Failure(BackendError(f"{item}: {kind}: {_line(str(error))}"))


def _reason(status: int, code: str, said: str, *, token: bool) -> tuple[str, str]:
    """A word for programs, and what to say."""
    if status == HTTPStatus.UNAUTHORIZED:
        return _WRONG_TOKEN if token or "Invalid credentials" in said else _NO_TOKEN
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in _LIMITS and _QUOTA.search(said):
        return "quota", f"the storage of this account is used up ({said})"
    if _FULL.search(said):
        return "full", f"the repository cannot hold so many files ({said}): use another, or the layout packed"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return "backend", "the Hub failed: try again later" if status in _PASSING else "the Hub refused"


def _window(headers: Mapping[str, str]) -> str:
    pause = pause_asked_for(HTTPStatus.TOO_MANY_REQUESTS, headers)
    return ": try again later" if pause is None else f": try again in {pause:.0f} seconds"


def _line(text: str) -> str:
    return " ".join(_ADDRESS.sub("…", text).split())[:_MESSAGE]
