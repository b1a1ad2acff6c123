"""Every default and every environment variable, in one place.

| Variable                                  | Meaning                                                                       |
|-------------------------------------------|-------------------------------------------------------------------------------|
| `PF_STORE`                                | directory of the store that the command uses; `~/.processfork` when unset     |
| `PF_SESSION_SECRET`                       | secret that chains the effects ledger, in hex; unset: a random one per ledger |
| `PF_{FILE,S3,IPFS,HF,OCI}_REG_SIGN_KEY`   | key that signs and must have signed images of that registry                   |
| `PFIMG_TRUST`                             | file of public keys, of which one must have signed what is pulled             |
| `PFIMG_KEY_PASSPHRASE`                    | passphrase of an encrypted private key                                        |
| `OCI_BEARER`                              | token for OCI registries                                                      |
| `OCI_USERNAME`, `OCI_PASSWORD`            | credentials for OCI registries                                                |
| `DOCKER_CONFIG`                           | directory where `docker login` keeps credentials; `~/.docker` when unset      |
| `AWS_*`, `GOOGLE_*`, `AZURE_*`            | endpoint and credentials of object stores; `docs/registries.md` lists them    |
| `HF_*`                                    | endpoint and token of the Hub; `docs/registries.md` tells of them             |
| `IPFS_API`                                | where the API of an IPFS node is; `http://127.0.0.1:5001` when unset          |
| `IPFS_API_AUTH`                           | what it asks for: `bearer:<token>` or `basic:<user>:<password>`               |
| `IPFS_GATEWAY`                            | gateway to pull from, instead of the node                                     |
| `PF_OCI_INSECURE`                         | `1`: plain http also to OCI registries on other machines, without credentials |
| `PFIMG_HTTP_TOKEN`                        | token for the server of an `http://` or `https://` reference, sent over TLS   |
| `PFIMG_THREADS`                           | threads that hash, encode and read (the core reads it); all cores when unset  |
| `PFIMG_KERNEL`                            | one of `pfimg.kernels()`, to hash with; the fastest when unset                |

Variables are read when they are needed, never at import, and are returned as they stand: what an empty or malformed value means
is decided by whoever asks. `PFIMG_KERNEL` is read by the core, once: with a name that is none of this processor's kernels,
whatever would hash, and so the opening of any store, raises FormatError, and nothing is hashed in another way than was asked for.
"""

import os
import re
from pathlib import Path
from typing import Final

DEFAULT_STORE: Final = "~/.processfork"
"""Where the command keeps its store; the reference command's place, so that both see the same images."""

DEFAULT_IPFS_API: Final = "http://127.0.0.1:5001"
"""Where an IPFS node has its API unless it is told otherwise."""

DEFAULT_GRACE_SECONDS: Final = 86_400
"""Age in seconds below which `gc` keeps every blob, because an image in the making may be about to name it."""


def store_path() -> Path:
    """The store that is meant when none is named: `PF_STORE`, else `DEFAULT_STORE`."""
    return Path(os.environ.get("PF_STORE") or DEFAULT_STORE).expanduser()


def session_secret() -> str | None:
    """`PF_SESSION_SECRET` as it stands, or None when it is unset."""
    return os.environ.get("PF_SESSION_SECRET")


def sign_key(registry: str) -> str | None:
    """`PF_<REGISTRY>_REG_SIGN_KEY` as it stands, or None when it is unset; `registry` is `file`, `s3`, `ipfs`, `hf` or `oci`."""
    return os.environ.get(f"PF_{registry.upper()}_REG_SIGN_KEY")


def trust() -> str | None:
    """`PFIMG_TRUST` as it stands, or None when it is unset."""
    return os.environ.get("PFIMG_TRUST")


def key_passphrase() -> str | None:
    """`PFIMG_KEY_PASSPHRASE` as it stands, or None when it is unset."""
    return os.environ.get("PFIMG_KEY_PASSPHRASE")


def oci_credentials() -> tuple[str | None, str | None, str | None]:
    """`OCI_BEARER`, `OCI_USERNAME` and `OCI_PASSWORD` as they stand, each None when it is unset."""
    return os.environ.get("OCI_BEARER"), os.environ.get("OCI_USERNAME"), os.environ.get("OCI_PASSWORD")


def oci_insecure() -> str | None:
    """`PF_OCI_INSECURE` as it stands, or None when it is unset."""
    return os.environ.get("PF_OCI_INSECURE")


def docker_config() -> Path:
    """The file in which docker keeps its credentials: in `DOCKER_CONFIG`, else in `~/.docker`."""
    return Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"


def http_token() -> str | None:
    """`PFIMG_HTTP_TOKEN` as it stands, or None when it is unset."""
    return os.environ.get("PFIMG_HTTP_TOKEN")


def ipfs_api() -> str:
    """Where the API of an IPFS node is: `IPFS_API`, else `DEFAULT_IPFS_API`."""
    return os.environ.get("IPFS_API") or DEFAULT_IPFS_API


def ipfs_api_auth() -> str | None:
    """`IPFS_API_AUTH` as it stands, or None when it is unset."""
    return os.environ.get("IPFS_API_AUTH")


def ipfs_gateway() -> str | None:
    """`IPFS_GATEWAY` as it stands, or None when it is unset or empty."""
    return os.environ.get("IPFS_GATEWAY") or None


_SIZES = {"": 1, "b": 1}
_SIZES |= {
    text: base**power
    for power, letter in enumerate("kmgtp", 1)
    for text, base in ((letter, 1000), (f"{letter}b", 1000), (f"{letter}ib", 1024))
}


def measure(text: str, units: dict[str, int]) -> float:
    """A number with a unit, such as `1.5 GiB`: the number times what the unit stands for. ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a number with one of the units {', '.join(filter(None, units))}")
    return float(match[1]) * units[match[2]]


def parse_size(text: str) -> int:
    """A size in bytes: `500000`, `10GB`, `512MiB`. ValueError for anything else.

    Example:
        >>> pfimg.config.parse_size("512MiB")
        536870912
    """
    try:
        return int(measure(text, _SIZES))
    except ValueError:
        raise ValueError(f"{text!r} is not a size such as 500000, 10GB or 512MiB") from None
