"""`oci://`: images in the registries of containers, each under a tag of a repository.

`manifest` has the documents, `repository` the requests, `referrer` what is said beside an image, `auth` and `credentials` what
lets one in, `address` where that is; `transport` puts them together.
"""

from pfimg.registries.oci.transport import OciTransport
from pfimg.registries.refs import OciRef
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry
from pfimg.types import StrPath

__all__ = ["OciRegistry", "OciTransport"]


class OciRegistry(TransportRegistry):
    """A registry for `oci://` references.

    Args:
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_OCI_REG_SIGN_KEY`, else the public one.
        jobs: Requests at once.
        username: With `password`; None goes by `OCI_USERNAME` and `OCI_PASSWORD`, else by what `docker login` has kept.
        password: With `username`.
        token: A token that the registry takes as it is, in place of the two; None goes by `OCI_BEARER`.
        insecure: Whether registries may do without TLS, which otherwise only one on this machine may. One on another machine gets
            no credentials then. None goes by `PF_OCI_INSECURE`.
        ca: A file of certificates to trust instead of the usual ones, which `SSL_CERT_FILE` names.
        mount_from: A repository from which a registry can take blobs without their being sent.

    Example:
        >>> registries.OciRegistry(username="me", password="secret")
        <OciRegistry for oci://>
    """

    def __init__(
        self,
        *,
        sign_key: Key | None = None,
        jobs: int | None = None,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        insecure: bool | None = None,
        ca: StrPath | None = None,
        mount_from: str | None = None,
    ) -> None:
        def connect(ref: OciRef) -> OciTransport:
            return OciTransport(
                ref,
                jobs=jobs,
                username=username,
                password=password,
                token=token,
                insecure=insecure,
                ca=ca,
                mount_from=mount_from,
            )

        super().__init__(connect, ("oci",), sign_key=sign_key)
