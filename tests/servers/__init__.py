"""The real servers that tests talk to, got, started and stopped here.

`python -m tests.servers get` gets them all; `python -m tests.servers run minio` starts one for a person. Tests use the fixtures
of `fixtures.py`, or the functions below, each a context manager that yields where its server is:

    with minio() as server:
        bucket = server.make_bucket()

Every server listens on 127.0.0.1, on a port of its own that nothing else can take in between, with its data and settings in a
temporary directory; it has answered before it is handed over, and it ends with the block, or with this process if that is killed.
"""

from tests.servers.azure import AzureServer, azurite
from tests.servers.binaries import Unavailable
from tests.servers.client import Response, request
from tests.servers.ipfs import Kubo, kubo
from tests.servers.oci import OciServer, distribution
from tests.servers.process import ServerFailed
from tests.servers.s3 import S3Server, minio, versitygw
from tests.servers.tokens import TokenService
from tests.servers.web import Nginx, nginx

__all__ = [
    "AzureServer",
    "Kubo",
    "Nginx",
    "OciServer",
    "Response",
    "S3Server",
    "ServerFailed",
    "TokenService",
    "Unavailable",
    "azurite",
    "distribution",
    "kubo",
    "minio",
    "nginx",
    "request",
    "versitygw",
]
