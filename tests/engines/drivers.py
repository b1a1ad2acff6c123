"""How the tests see an engine: with our plug-in, loaded by the engine's own factory from the documented configuration.

A driver does what the engine would do (submits jobs, polls, waits for them) and nothing else; whatever is checked is checked
in the tests. Pages are rows of bytes.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

import pfimg

Rows = npt.NDArray[np.uint8]

ENGINES = ("vllm", "sglang", "lmcache")
PAGE_BYTES = 65_536


class Driver(Protocol):
    """An engine that runs."""

    # The plug-in's own.
    cache: pfimg.PageCache

    def store(self, keys: Sequence[str], pages: Rows) -> bool:
        """Has pages stored under keys, and waits; whether the engine was told that all are."""

    def lookup(self, keys: Sequence[str]) -> int:
        """How many keys from the first one on the engine was told are there."""

    def load(self, keys: Sequence[str]) -> list[bytes | None]:
        """Has pages loaded, and waits; None where the engine was told that there is none."""

    def close(self) -> None:
        """Ends the engine, as it ends itself."""


def require(name: str) -> None:
    """Skips the test where an engine is not installed; with PFIMG_REQUIRE_ENGINES=1 it fails instead."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("PFIMG_REQUIRE_ENGINES") == "1":
            raise
        pytest.skip(f"{name} is not installed: make engines ({error})")


def open_engine(name: str, directory: Path, **options: Any) -> Driver:
    """An engine whose tier is configured with `options` beside `path`; `model` and `revision` among them."""
    module = importlib.import_module(f"tests.engines.{name}_driver")
    configured = {"path": str(directory), "arena_bytes": "8MiB", "model": "llama", "revision": "main"} | options
    driver: Driver = module.open(configured)
    return driver
