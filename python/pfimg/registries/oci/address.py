"""Where a registry is spoken to, and whether by TLS.

A registry is spoken to by https. Only one on this machine, or one for which that was allowed, may have no TLS: it is asked, by
the beginning of a connection that carries nothing.
"""

import socket
import ssl
from typing import Final

from pfimg import config
from pfimg.errors import RegistryTimeout
from pfimg.registries.connections import is_loopback
from pfimg.registries.oci.credentials import HUB_ADDRESS, is_hub
from pfimg.registries.refs import OciRef

_PROBE_SECONDS: Final = 30.0


def address(ref: OciRef, *, insecure: bool | None) -> str:
    """The address of the registry that has a reference's repository.

    Args:
        ref: The reference.
        insecure: Whether that registry may do without TLS; None goes by `PF_OCI_INSECURE`.

    Raises:
        RegistryTimeout: It does not answer.
    """
    host = HUB_ADDRESS if is_hub(ref.host) else ref.host
    may_be_plain = is_loopback(host) or (config.oci_insecure() not in (None, "", "0") if insecure is None else insecure)
    scheme = "http" if may_be_plain and not _speaks_tls(host.strip("[]"), ref.port or 443) else "https"
    return f"{scheme}://{host}{f':{ref.port}' if ref.port else ''}"


def name_of(ref: OciRef) -> str:
    """What a registry is called where credentials are kept."""
    return f"{ref.host}{f':{ref.port}' if ref.port else ''}"


def _speaks_tls(host: str, port: int) -> bool:
    """Whether a server answers to TLS. When it cannot be reached that is for the request itself to say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent, so it does not matter to whom; the requests look at the certificate.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), _PROBE_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except TimeoutError:
        message = f"{host}:{port} does not answer in {_PROBE_SECONDS:.0f} seconds: check the address and the network"
        raise RegistryTimeout(message, retryable=True) from None
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return False
    except OSError:
        return True
