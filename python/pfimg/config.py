"""Every default and every environment variable, in one place.

| Variable                                  | Meaning                                                                       |
|-------------------------------------------|-------------------------------------------------------------------------------|
| `PF_STORE`                                | directory of the store that the command uses; `~/.processfork` when unset     |
| `PF_SESSION_SECRET`                       | secret that chains the effects ledger, in hex; unset: a random one per ledger |
| `PF_{FILE,S3,IPFS,HF,OCI}_REG_SIGN_KEY`   | key that signs and must have signed images of that registry                   |
| `PFIMG_THREADS`                           | threads that hash, encode and read (the core reads it); all cores when unset  |
| `PFIMG_KERNEL`                            | one of `pfimg.kernels()`, to hash with; the fastest when unset                |

Variables are read when they are needed, never at import, and are returned as they stand: what an empty or malformed value means
is decided by whoever asks. `PFIMG_KERNEL` alone is read by the core as it is loaded: with a name that is none of this processor's
kernels, `import pfimg` raises FormatError, so that nothing is hashed in another way than was asked for.
"""

import os
from pathlib import Path
from typing import Final

DEFAULT_STORE: Final = "~/.processfork"
"""Where the command keeps its store; the reference command's place, so that both see the same images."""

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
