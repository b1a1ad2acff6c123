"""Registries: places that keep images, reached by references such as `file:///srv/images/one`.

A *transport* moves bytes to and from one place; a *registry* is the one push and the one pull (`pfimg.delivery`) over a
transport. Each scheme has a transport; `register_scheme`, or an entry point of the group `pfimg.registries`, adds one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pfimg.registries.base import Factory, Registry, Sink, StoredBlob, Transport, register_scheme
from pfimg.registries.file import FileRegistry, FileTransport
from pfimg.registries.refs import AnyRef, FileRef, HfRef, HttpRef, ImageRef, IpfsRef, OciRef, OtherRef, S3Ref
from pfimg.transfer import open

if TYPE_CHECKING:
    from pfimg.registries.hf import HfRegistry, HfTransport
    from pfimg.registries.http import HttpRegistry, HttpTransport
    from pfimg.registries.ipfs import IpfsRegistry, IpfsTransport
    from pfimg.registries.oci import OciRegistry, OciTransport
    from pfimg.registries.s3 import S3Registry, S3Transport

# What needs more than Python and the core is imported when it is first used: the transport of each scheme, and public names.
_SCHEMES: Final = {
    "hf": "pfimg.registries.hf:HfTransport",
    "http": "pfimg.registries.http:HttpTransport",
    "https": "pfimg.registries.http:HttpTransport",
    "ipfs": "pfimg.registries.ipfs:IpfsTransport",
    "oci": "pfimg.registries.oci:OciTransport",
    "s3": "pfimg.registries.s3:S3Transport",
    "gs": "pfimg.registries.s3:S3Transport",
    "az": "pfimg.registries.s3:S3Transport",
}
_NAMES: Final = {
    "HfRegistry": "pfimg.registries.hf",
    "HfTransport": "pfimg.registries.hf",
    "HttpRegistry": "pfimg.registries.http",
    "HttpTransport": "pfimg.registries.http",
    "IpfsRegistry": "pfimg.registries.ipfs",
    "IpfsTransport": "pfimg.registries.ipfs",
    "OciRegistry": "pfimg.registries.oci",
    "OciTransport": "pfimg.registries.oci",
    "S3Registry": "pfimg.registries.s3",
    "S3Transport": "pfimg.registries.s3",
}


def _later(place: str) -> Factory:
    """A factory that is imported when it is called."""
    module, _, name = place.partition(":")

    def factory(ref: AnyRef, **options: Any) -> Transport:
        transport: Transport = getattr(import_module(module), name)(ref, **options)
        return transport

    return factory


register_scheme("file", FileTransport)
for _scheme, _place in _SCHEMES.items():
    register_scheme(_scheme, _later(_place))


def __getattr__(name: str) -> object:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FileRef",
    "FileRegistry",
    "FileTransport",
    "HfRef",
    "HfRegistry",
    "HfTransport",
    "HttpRef",
    "HttpRegistry",
    "HttpTransport",
    "ImageRef",
    "IpfsRef",
    "IpfsRegistry",
    "IpfsTransport",
    "OciRef",
    "OciRegistry",
    "OciTransport",
    "OtherRef",
    "Registry",
    "S3Ref",
    "S3Registry",
    "S3Transport",
    "Sink",
    "StoredBlob",
    "Transport",
    "open",
    "register_scheme",
]
