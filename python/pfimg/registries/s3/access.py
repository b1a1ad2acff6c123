"""How to get to a bucket: what the options of a call say, else what the environment does.

Whatever obstore knows as a setting of such a store can be given as an option, under obstore's name for it, and is read from the
environment where it is not given. What is decided here is what obstore leaves open: which endpoint is meant, whether it may be
one of plain http, whom to trust, and which credentials count. For S3 these are the first of: those given, the profile given,
those of AWS_ACCESS_KEY_ID, the profile of AWS_PROFILE or of the files that the AWS tools share, and what a machine of the cloud
is given. Profiles are read by boto3.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pfimg.errors import BadRef, RegistryError
from pfimg.registries.refs import S3Ref
from pfimg.registries.s3.failures import Place
from pfimg.types import StrPath

try:
    import obstore.exceptions
    import obstore.store
except ModuleNotFoundError as error:
    raise RegistryError(
        "s3://, gs:// and az:// need the package obstore: pip install 'pfimg[s3]'", code="not_installed"
    ) from error

TIMEOUT: Final = 120.0
"""Seconds that one request may take where `timeout` is not given; it moves at most 16 MiB."""

_CONNECT_SECONDS: Final = 10
# The process whose threads work for obstore, once there is one: they are not copied by a fork, and it would wait for them.
_process: dict[str, int] = {}
_TRUE: Final = frozenset({"1", "t", "true", "y", "yes", "on"})


@dataclass(frozen=True, slots=True)
class _Service:
    """What differs between the services.

    Attributes:
        make: Opens a store.
        endpoint: obstore's name for the option that says whom to ask.
        endpoint_variables: Which environment variables say so, the first that is set.
        prefix: Of the variables of this service.
        default: Who is asked where nobody is named.
    """

    make: Any
    endpoint: str
    endpoint_variables: tuple[str, ...]
    prefix: str
    default: str


_SERVICES: Final = {
    "s3": _Service(
        obstore.store.S3Store,
        "aws_endpoint_url_s3",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "AWS",
        "Amazon S3",
    ),
    "gs": _Service(obstore.store.GCSStore, "base_url", ("GOOGLE_BASE_URL",), "GOOGLE", "Google Cloud Storage"),
    "az": _Service(
        obstore.store.AzureStore,
        "endpoint",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "AZURE",
        "Azure Blob Storage",
    ),
}


@dataclass(frozen=True, slots=True)
class Access:
    """The way to a bucket.

    Attributes:
        place: Who is asked, for messages.
        timeout: Seconds that one request may take.
    """

    place: Place
    timeout: float
    _ref: S3Ref
    _arguments: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        ref: S3Ref,
        *,
        endpoint: str | None = None,
        profile: str | None = None,
        ca: StrPath | None = None,
        allow_http: bool | None = None,
        timeout: float = TIMEOUT,
        **settings: object,
    ) -> "Access":
        """Reads options and environment; see S3Transport.

        Raises:
            BadRef: The reference or the endpoint cannot be used.
            RegistryError: An option is not known, or the profile cannot be read.
        """
        if any(part in ("", ".", "..") for part in ref.prefix.split("/")) and ref.prefix:
            raise BadRef(f"{ref}: a prefix has no empty, '.' or '..' segments here: name another")
        service = _SERVICES[ref.scheme]
        endpoint = endpoint or _variable(*service.endpoint_variables)
        config = {
            "timeout": f"{timeout * 1000:.0f}ms",
            "connect_timeout": f"{_CONNECT_SECONDS}s",
            "user_agent": "pfimg",
            **settings,
        }
        anonymous = _is_true(config.get("skip_signature"), f"{service.prefix}_SKIP_SIGNATURE")
        if endpoint is not None:
            allowed = _is_true(allow_http, f"{service.prefix}_ALLOW_HTTP")
            config["allow_http"] = _check(endpoint, may_be_http=allowed or anonymous)
            config[service.endpoint] = endpoint
        arguments: dict[str, Any] = {"prefix": ref.prefix or None, "config": config}
        bundle = ca or (_variable("AWS_CA_BUNDLE") if ref.scheme == "s3" else None)
        if bundle is not None:
            arguments["client_options"] = {"root_certificate": Path(bundle).read_bytes()}
        if ref.scheme == "s3":
            region = settings.get("region") or _variable("AWS_REGION", "AWS_DEFAULT_REGION")
            if region is not None:
                config["region"] = region
            if not anonymous and "access_key_id" not in settings:
                arguments["credential_provider"] = _shared_credentials(ref, profile)
        return cls(Place(ref.scheme, endpoint or service.default), timeout, ref, arguments)

    def open(self, retries: Mapping[str, Any]) -> Any:
        """Makes a store of obstore, with connections of its own.

        Args:
            retries: obstore's RetryConfig.

        Raises:
            RegistryError: An option is not known, or cannot be used; or this process is a fork of one that had opened a bucket.
        """
        if _process.setdefault("id", os.getpid()) != os.getpid():
            message = f"{self._ref}: this process is a fork of one that used a bucket, whose threads it lacks"
            raise RegistryError(f"{message}: start processes by spawn or forkserver", code="forked")
        service = _SERVICES[self._ref.scheme]
        try:
            return service.make(self._ref.bucket, retry_config=retries, **self._arguments)
        except obstore.exceptions.UnknownConfigurationKeyError as error:
            raise RegistryError(f"{self._ref}: {_first_line(error)}: see docs/registries.md", code="option") from None
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise RegistryError(f"{self._ref} cannot be opened: {_first_line(error)}", code="option") from None


def _check(endpoint: str, *, may_be_http: bool) -> bool:
    """Whether an endpoint is one of plain http; BadRef when it is none, or must not be that."""
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise BadRef(f"endpoint {_hidden(endpoint)!r} is no address: it must be as https://host or http://127.0.0.1:9000")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadRef(f"endpoint {_hidden(endpoint)!r}: an address holds no credentials and no query: leave them out")
    if parts.scheme == "https":
        return False
    if not may_be_http and not _is_loopback(host):
        message = f"endpoint {endpoint}: over plain http, others could read and change what is sent, session tokens too"
        raise BadRef(f"{message}: use https, or allow_http=True (AWS_ALLOW_HTTP=true) where the network can be trusted")
    return True


def _shared_credentials(ref: S3Ref, profile: str | None) -> Any:
    """Credentials by boto3: of the profile, or where the AWS tools' own variables and files say; None leaves it to obstore."""
    named = profile or _variable("AWS_PROFILE")
    if profile is None:
        files = (
            Path(os.environ.get(variable) or path).expanduser()
            for variable, path in (
                ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
                ("AWS_CONFIG_FILE", "~/.aws/config"),
            )
        )
        if _variable("AWS_ACCESS_KEY_ID") or not (named or any(file.is_file() for file in files)):
            return None
    try:
        import boto3  # noqa: PLC0415 - it takes long, and is seldom needed
        import botocore.exceptions  # noqa: PLC0415
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ModuleNotFoundError:
        if named is None:
            return None
        message = f"{ref}: to read the profile {named!r} takes boto3: pip install boto3"
        raise RegistryError(message, code="not_installed") from None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except botocore.exceptions.BotoCoreError as error:
        raise RegistryError(f"{ref}: no credentials: {_first_line(error)}", code="no_credentials") from None
    except ValueError:  # there are none
        if named is None:
            return None
        message = f"{ref}: the profile {named!r} has no credentials: log in (aws sso login), or name another"
        raise RegistryError(message, code="no_credentials") from None


def _variable(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _is_true(value: object, variable: str) -> bool:
    if value is None:
        value = os.environ.get(variable, "")
    return str(value).strip().lower() in _TRUE


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hidden(endpoint: str) -> str:
    """An address without what may be secret in it."""
    return endpoint.partition("?")[0].rpartition("@")[2]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
