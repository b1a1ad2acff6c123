"""Registries: places that keep images, reached by references such as `file:///srv/images/one`.

A *transport* moves bytes to and from one place; a *registry* is the one push and the one pull (`pfimg.transfer`) over a
transport. Each scheme has a transport; `register_scheme`, or an entry point of the group `pfimg.registries`, adds one.
"""

from pfimg.registries.base import Registry, Sink, StoredBlob, Transport, register_scheme
from pfimg.registries.file import FileRegistry, FileTransport
from pfimg.registries.refs import FileRef, HfRef, HttpRef, ImageRef, IpfsRef, OciRef, OtherRef, S3Ref
from pfimg.transfer import open

register_scheme("file", FileTransport)

__all__ = [
    "FileRef",
    "FileRegistry",
    "FileTransport",
    "HfRef",
    "HttpRef",
    "ImageRef",
    "IpfsRef",
    "OciRef",
    "OtherRef",
    "Registry",
    "S3Ref",
    "Sink",
    "StoredBlob",
    "Transport",
    "open",
    "register_scheme",
]
