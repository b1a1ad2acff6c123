"""`ipfs://`: images as directories that are named by their CID, on a node of IPFS or behind a gateway.

`node` has the requests, `directory` what is read block by block, `arrival` what comes as an archive; `transport` puts them
together.
"""

from copy import copy as clone
from typing import Self

from pfimg.registries.ipfs.transport import IpfsTransport
from pfimg.registries.refs import IpfsRef
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry
from pfimg.types import StrPath

__all__ = ["IpfsRegistry", "IpfsTransport"]


class IpfsRegistry(TransportRegistry):
    """A registry for `ipfs://` references.

    Args:
        endpoint: Where the API of the node is, as a URL or a multiaddress; None goes by `IPFS_API`, else `http://127.0.0.1:5001`.
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_IPFS_REG_SIGN_KEY`, else the public one.
        jobs: Requests at once.
        auth: What the API asks for, `bearer:<token>` or `basic:<user>:<password>`; None goes by `IPFS_API_AUTH`.
        gateway: A trustless gateway to pull from; None pulls from the node if `endpoint` is given, else goes by `IPFS_GATEWAY`.
        ca: A file of certificates to trust instead of the usual ones.
        timeout: Seconds that the node has to find a block; 60 when not given.

    Example:
        >>> registries.IpfsRegistry().with_endpoint("http://127.0.0.1:5002")
        <IpfsRegistry for ipfs://>
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        sign_key: Key | None = None,
        jobs: int | None = None,
        auth: str | None = None,
        gateway: str | None = None,
        ca: StrPath | None = None,
        timeout: float | None = None,
    ) -> None:
        def connect_to(endpoint: str | None, ref: IpfsRef) -> IpfsTransport:
            return IpfsTransport(ref, jobs=jobs, endpoint=endpoint, auth=auth, gateway=gateway, ca=ca, timeout=timeout)

        self._connect_to = connect_to
        super().__init__(lambda ref: connect_to(endpoint, ref), ("ipfs",), sign_key=sign_key)

    def with_endpoint(self, url: str) -> Self:
        """A copy that speaks to another node."""
        other = clone(self)
        connect_to = self._connect_to
        other._connect = lambda ref: connect_to(url, ref)  # noqa: SLF001 - of the same class
        return other
