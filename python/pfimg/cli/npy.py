"""NumPy `.npy` files of KV pages as memory maps, without NumPy.

Only what KV pages need is read: a C-ordered, little-endian array of five dimensions (pages, layers, tokens, heads, head_dim), in
versions 1 to 3 of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The bytes stay in the file until used.
"""

import ast
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pfimg import CacheMeta

# bfloat16 and fp8 have no NumPy type of their own: their bits are kept as unsigned integers.
_DTYPES = {"<u2": "bf16", "<f2": "f16", "<f4": "f32", "|u1": "fp8e4m3"}
_MAGIC = b"\x93NUMPY"
_DIMENSIONS = 5


@dataclass(frozen=True)
class PagesFile:
    """The pages of one side (K or V): their geometry and their bytes, one row a page."""

    path: Path
    meta: CacheMeta
    rows: memoryview

    @classmethod
    def open(cls, path: Path) -> "PagesFile":
        """Maps the file. Errors: OSError; ValueError when it is not such an array."""

        def refuse(reason: str) -> NoReturn:
            raise ValueError(f"{path}: {reason}: give a C-ordered .npy array of (pages, layers, tokens, heads, head_dim)")

        with path.open("rb") as file:
            start = file.read(12)
            if not start.startswith(_MAGIC) or len(start) < 12:  # noqa: PLR2004 - up to and with the longest form of the length
                refuse("not a .npy file")
            offset, width = (10, "<H") if start[6] == 1 else (12, "<I")
            (length,) = struct.unpack_from(width, start, 8)
            file.seek(offset)
            try:
                header = ast.literal_eval(file.read(length).decode())
                descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
            except (ValueError, SyntaxError, KeyError, TypeError):
                refuse("the header is damaged")
            if descr not in _DTYPES:
                refuse(f"items of type {descr!r} are not KV pages (known: {', '.join(f'{k} = {v}' for k, v in _DTYPES.items())})")
            if fortran or not isinstance(shape, tuple) or len(shape) != _DIMENSIONS:
                refuse(f"shape {shape!r}{' in Fortran order' if fortran else ''}")
            pages, layers, tokens, heads, head_dim = shape
            meta = CacheMeta(page_size_tokens=tokens, n_layers=layers, n_heads=heads, head_dim=head_dim, dtype=_DTYPES[descr])
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[offset + length :]
            if len(body) != pages * meta.page_bytes:
                refuse(f"holds {len(body):,} bytes of pages, not {pages * meta.page_bytes:,}")
            return cls(path, meta, body.cast("B", (pages, meta.page_bytes)))
