"""ZipNN, lossless compression of floats: its published class on plain bytes, on one thread.

Its package imports PyTorch for the tensors that it takes as well; plain bytes never get there. Where PyTorch is not installed, a
stand-in takes its place while the package is imported.
"""

import importlib
import sys
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock, patch

from .origin import CACHE, Missing, pip

VERSION = "0.5.4"
STAND_INS = ("torch", "safetensors", "safetensors.torch")


def download() -> None:
    """Builds and installs the package alone."""
    if not (CACHE / "zipnn").exists():
        pip("install", "--no-deps", f"--target={CACHE}", f"zipnn=={VERSION}")


@cache
def _package() -> Any:
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "path", [*sys.path, str(CACHE)]))
        missing = [name for name in STAND_INS if find_spec(name.partition(".")[0]) is None]
        stack.enter_context(patch.dict(sys.modules, {name: MagicMock() for name in missing}))
        try:
            return importlib.import_module("zipnn")
        except ImportError as error:
            raise Missing(f"ZipNN {VERSION}: {error}; get it with `python -m benches.peers`") from error


class ZipNN:
    """Encodes and decodes bf16 bytes with the package's defaults."""

    def __init__(self) -> None:
        self._codec = _package().ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)

    def encode(self, page: bytes) -> bytes:
        """Leaves other bytes in `page`, although it is `bytes`: it reorders their bits in place. Give it a copy of its own."""
        frame: bytes = self._codec.compress(page)
        return frame

    def decode(self, frame: bytes) -> bytearray:
        page: bytearray = self._codec.decompress(frame)
        return page
