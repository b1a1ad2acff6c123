"""Who asks the Hub, and where that is: what a call says, else what `huggingface_hub` goes by."""

import os
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from pfimg._core import __version__
from pfimg.errors import BackendError, RegistryError
from pfimg.registries.connections import is_loopback

try:
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
except ModuleNotFoundError as error:
    raise RegistryError("hf:// needs the package huggingface_hub: pip install 'pfimg[hf]'", code="not_installed") from error

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """The way to the Hub.

    Attributes:
        endpoint: Its address.
        token: What proves who is asking, None where there is nothing.
    """

    endpoint: str
    token: str | None = field(repr=False)

    @classmethod
    def of(cls, *, endpoint: str | None, token: str | None) -> "Access":
        """Reads options, the environment, and what `hf auth login` has kept.

        Raises:
            BackendError: The token is none, or the Hub is not to be asked.
        """
        if constants.HF_HUB_OFFLINE:
            raise BackendError("HF_HUB_OFFLINE is set, so that the Hub is not asked: unset it", code="offline")
        if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            token = get_token()
        token = (token or "").strip() or None
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise BackendError("the token of the Hub has characters that no token has: check HF_TOKEN", code="credentials")
        # The client reads the variable once, when it is imported.
        return cls((endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"), token)

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        parts = urlsplit(self.endpoint)
        return parts.scheme == "https" or is_loopback(parts.hostname or "")

    def authorization(self, host: str, port: int) -> str | None:
        """The value of `Authorization` for a server: the token is for the Hub alone."""
        parts = urlsplit(self.endpoint)
        own = (parts.hostname, parts.port or _PORTS.get(parts.scheme))
        return f"Bearer {self.token}" if self.token and (host.strip("[]"), port) == own else None

    def check_writing(self, place: str) -> None:
        """BackendError where the Hub would not let anybody write."""
        if self.token is None:
            message = f"{place}: a push needs a token that may write: put one into HF_TOKEN, or run hf auth login"
            raise BackendError(message, code="no_credentials")
        if not self.is_private:
            raise BackendError(f"{place}: a token is not sent over plain http: use https", code="credentials")

    def headers(self) -> dict[str, str]:
        """What requests of the client say of who asks."""
        return dict(build_hf_headers(token=self.token or False, library_name="pfimg", library_version=__version__))

    def api(self) -> HfApi:
        """The client."""
        # Without a token it would look for one by itself.
        return HfApi(self.endpoint, token=self.token or False, library_name="pfimg", library_version=__version__)
