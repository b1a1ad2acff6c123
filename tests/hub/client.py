"""Settings under which the published client speaks to a Hub of the tests, and leaves the machine alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import close_session, constants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hub.server import Hub


@contextmanager
def speaking_to(hub: Hub, home: Path) -> Iterator[None]:
    """Sets the variables for processes that are started, and what the client of this process has read from them already.

    Xet is off. Where `hf_xet` is installed, which it is with the client on most machines, recent clients upload by Xet alone and
    older ones ask the server; without it, and with this switch, all of them upload by LFS.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", hub.token())
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
            patch.setattr(constants, name, True)
        patch.setenv("HF_HOME", str(home))
        for name, place in (("HF_HOME", ""), ("HF_HUB_CACHE", "hub"), ("HF_TOKEN_PATH", "token"), ("HF_XET_CACHE", "xet")):
            patch.setattr(constants, name, str(home / place))
        try:
            yield
        finally:
            close_session()
