"""What an object store's failures mean: one line that names the object and says what to do.

obstore tells a failure as text: a status and the service's own document where there was an answer, else what broke the
connection. Only known parts of it are repeated, since documents may quote what was sent, tokens too.
"""

import re
from html import unescape
from typing import Final, NamedTuple

from pfimg.errors import BackendError, RegistryTimeout

ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "BlobNotFound"})
"""What services call an object that is not there."""

_MESSAGE: Final = 200
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>\s*([\w.-]{1,80})\s*</Code>")
_TEXT: Final = re.compile(r"<Message>([^<]*)")
_REGION: Final = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>|expecting (?:&#34;|&quot;|')([a-z0-9-]{1,40})")
_KIND: Final = re.compile(r"\bkind: (Connect|Request|Timeout|Interrupted|Decode)\b")
_CERTIFICATE: Final = re.compile(r"\bInvalidCertificate\(\s*(\w+)")
_REDIRECT: Final = "redirect without LOCATION"
# Where machines of the clouds ask for credentials: to be turned away there means that there are none.
_METADATA: Final = re.compile(
    r"https?://(?:169\.254\.\d+\.\d+[:/]|[^/\s]+/(?:latest/(?:api/token|meta-data/iam/)|metadata/identity/|computeMetadata/))"
)

_MOVED: Final = 301
# An answer of 200 may hold an error too.
_FAILED: Final = 500
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_HOW: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (which needs boto3)",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_NO_BUCKET: Final = ("no_bucket", "the bucket does not exist: create it, or correct the reference")
_DENIED: Final = ("forbidden", "access is denied: these credentials may not do this, or not see whether the object is there")
_WRONG_KEY: Final = ("credentials", "the credentials are wrong: check {how}")
_EXPIRED: Final = ("expired", "the credentials have expired: get new ones")
_BAD_TOKEN: Final = ("credentials", "the session token is not valid: get new credentials")
_REGION_IS: Final = ("wrong_region", "the bucket is in another region{region}: set AWS_REGION")

# Codes of S3 and of what speaks like it, then those of Azure.
_REASONS: Final = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": ("no_bucket", "this is no name of a bucket: correct the reference"),
    "AccessDenied": _DENIED,
    "InvalidAccessKeyId": _WRONG_KEY,
    "XAdminUserNotFound": _WRONG_KEY,
    "SignatureDoesNotMatch": _WRONG_KEY,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _BAD_TOKEN,
    "InvalidTokenId": _BAD_TOKEN,
    "RequestTimeTooSkewed": ("clock", "the clock of this machine is wrong: set it"),
    "AuthorizationHeaderMalformed": _REGION_IS,
    "PermanentRedirect": _REGION_IS,
    "IllegalLocationConstraintException": _REGION_IS,
    "ContainerNotFound": _NO_BUCKET,
    "AuthenticationFailed": _WRONG_KEY,
    "AuthorizationFailure": _DENIED,
    "AuthorizationPermissionMismatch": _DENIED,
    "PublicAccessNotPermitted": _DENIED,
}  # fmt: skip


class Place(NamedTuple):
    """Who is asked, for messages: the scheme, and the endpoint's address."""

    scheme: str
    endpoint: str


class Failure(NamedTuple):
    """What an exception of obstore tells.

    Attributes:
        status: What the service answered, None when it did not.
        code: The service's own word for it; empty where there is none.
        error: As it is raised.
    """

    status: int | None
    code: str
    error: BackendError

    @property
    def is_conflict(self) -> bool:
        """Whether a condition was not met, or another writer was at work."""
        return self.status in (409, 412) or (self.status == 404 and self.code in ABSENT)  # noqa: PLR2004

    @property
    def is_not_offered(self) -> bool:
        """Whether the service does not do such things at all."""
        return self.status == 501 or self.code == "NotImplemented"  # noqa: PLR2004


def understand(error: Exception, item: str, place: Place, timeout: float) -> Failure:
    """Makes of an exception of obstore what is raised for it, about the item."""
    text, _, details = str(error).partition("\n\nDebug source")
    found = _STATUS.search(text)
    code = _CODE.search(text)
    status = int(found[1]) if found else _MOVED if _REDIRECT in text else 0
    if _METADATA.search(text.partition(" - ")[0]):
        message = f"{item}: no credentials were found: set {_HOW[place.scheme]}, or skip_signature=True where none are needed"
        return Failure(None, "", BackendError(message, code="no_credentials"))
    if not status and code is None:
        return Failure(None, "", _unanswered(text, details, item, place, timeout))
    status = status or _FAILED
    name = code[1] if code else ""
    word, reason = _reason(status, name, text, place)
    return Failure(status, name, BackendError(f"{item}: {reason}", code=word, status=status, retryable=status in _PASSING))


def _reason(status: int, code: str, text: str, place: Place) -> tuple[str, str]:
    """A word for programs, and what to say."""
    answer = f"{status} {code}".rstrip()
    if code in _REASONS:
        word, reason = _REASONS[code]
    elif status in (_MOVED, 307):
        word, reason = _REGION_IS
    elif status == 401:  # noqa: PLR2004
        word, reason = _WRONG_KEY
    elif status == 403:  # noqa: PLR2004
        word, reason = _DENIED
    elif status in _PASSING:
        return "backend", f"{place.endpoint} failed ({answer}): try again later"
    else:
        said = _TEXT.search(text)
        return "backend", f"{place.endpoint} answered {answer}{f': {_line(said[1])}' if said else ''}"
    region = _REGION.search(text)
    named = f", {region[1] or region[2]}" if region else ""
    return word, f"{reason.format(how=_HOW[place.scheme], region=named)} ({place.endpoint} answered {answer})"


def _unanswered(text: str, details: str, item: str, place: Place, timeout: float) -> BackendError:
    kind = _KIND.search(details)
    where = place.endpoint
    if kind is None:
        return BackendError(f"{item}: {_line(text.rpartition(' - ')[2])}")
    if kind[1] == "Timeout" or "kind: TimedOut" in details:
        message = f"{item}: {where} has not answered in {timeout:g} seconds: check the address and the network"
        return RegistryTimeout(message, retryable=True)
    if kind[1] != "Connect":
        return BackendError(f"{item}: the connection to {where} broke off: try again later", retryable=True)
    if (certificate := _CERTIFICATE.search(details)) is not None:
        reason = f"the certificate of {where} is not trusted ({certificate[1]}): name its authority by ca= or AWS_CA_BUNDLE"
        return BackendError(f"{item}: {reason}", code="certificate")
    if '"dns error"' in details:
        reason = "the name of the host is not known"
    elif "ConnectionRefused" in details:
        reason = "the connection is refused"
    else:
        reason = "no connection"
    return BackendError(f"{item}: {reason} at {where}: check the endpoint and the network", code="unreachable", retryable=True)


def _line(text: str) -> str:
    return " ".join(unescape(text).split())[:_MESSAGE]
