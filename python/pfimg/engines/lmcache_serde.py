"""A serde of LMCache that makes pages of floats smaller and loses nothing: `pfimg_float`, for any of its adapters.

A page of bf16 takes two thirds. What LMCache stores then is bytes with a head that tells which page they are of, so that whatever
storage they come back from, another page, or one of another layout, is an error and not a wrong page.
"""

import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde import AsyncSerdeProcessor, Deserializer, SerdeProcessor, Serializer, register_serde_factory
from lmcache.v1.memory_management import MemoryObj

from pfimg._core import decode_frame, digests_of, encode_frame
from pfimg.engines.lmcache_pages import bytes_of, layout_of
from pfimg.errors import FormatError, IntegrityError

# What stands before a page that the serde made: "pfls", version, whether a frame follows, the bytes that follow, the hash of the
# layout, and the BLAKE3 digest of the page. What follows is a frame of our float codec, or the page where that is not longer.
_HEAD = struct.Struct("<4sBBxxQ16s32s")
_MAGIC, _VERSION = b"pfls", 1


def _hash_of_layout(page: MemoryObj) -> bytes:
    return blake2b(layout_of(page).encode(), digest_size=16).digest()


def _digest(data: Any) -> str:
    return digests_of([data], algorithm="blake3")[0]


def _array(page: MemoryObj) -> npt.NDArray[np.uint8]:
    """The bytes of a page, in place: NumPy copies without the interpreter's lock."""
    return np.frombuffer(page.byte_array, np.uint8)


class PfimgFloatSerializer(Serializer):
    """Pages of floats in about two thirds of their bytes, none of them lost."""

    def serialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> int:  # noqa: ARG002 - the page is what counts
        """Fills the beginning of `dst`; returns how many bytes of it."""
        page, out = _array(src), _array(dst)
        frame = np.frombuffer(encode_frame(page, codec="float"), np.uint8)
        coded = len(frame) < len(page)
        body = frame if coded else page
        digest = bytes.fromhex(_digest(page).partition(":")[2])
        head = _HEAD.pack(_MAGIC, _VERSION, coded, len(body), _hash_of_layout(src), digest)
        end = len(head) + len(body)
        np.copyto(out[: len(head)], np.frombuffer(head, np.uint8))
        np.copyto(out[len(head) : end], body)
        return end

    def estimate_serialized_size(self, layout_desc: MemoryLayoutDesc) -> int:
        """The most that it may be: a page that gets no smaller is kept as it is."""
        return _HEAD.size + bytes_of(layout_desc)


class PfimgFloatDeserializer(Deserializer):
    """The way back; a page of other bytes or another layout than was asked for is an error, whatever storage it came from."""

    def deserialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> None:  # noqa: ARG002 - as above
        """Fills `dst`, or raises."""
        data, out = _array(src), _array(dst)
        if len(data) < _HEAD.size:
            raise FormatError(f"{len(data)} bytes are no page of the serde pfimg_float")
        magic, version, coded, length, layout, digest = _HEAD.unpack(data[: _HEAD.size].tobytes())
        body = data[_HEAD.size : _HEAD.size + length]
        if (magic, version) != (_MAGIC, _VERSION) or coded > 1 or len(body) != length:
            raise FormatError("this is no page of the serde pfimg_float, or not a whole one")
        if layout != _hash_of_layout(dst):
            raise FormatError(f"this page has another layout than {layout_of(dst)}")
        expected = f"blake3:{digest.hex()}"
        if coded:
            body = np.frombuffer(decode_frame(body, expect=expected), np.uint8)
        elif _digest(body) != expected:
            raise IntegrityError(f"this page does not hash to {expected}", digest=expected)
        if len(body) != len(out):
            raise FormatError(f"this page has {len(body)} bytes, not {len(out)}")
        np.copyto(out, body)


def _float_serde(options: Mapping[str, Any]) -> SerdeProcessor:
    unknown = set(options) - {"max_workers"}
    if unknown:
        raise FormatError(f"{min(unknown)!r} is no option of the serde pfimg_float, which has max_workers", field=min(unknown))
    return AsyncSerdeProcessor(PfimgFloatSerializer(), PfimgFloatDeserializer(), max_workers=int(options.get("max_workers", 1)))


# By this name an adapter's configuration asks for it, once this module has been imported, which that of the adapter sees to.
register_serde_factory("pfimg_float", _float_serde)
