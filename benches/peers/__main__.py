"""Gets the peers that are no ordinary dependencies into .cache/peers; `make bench` runs it."""

import subprocess
import sys

from . import lmcache, zipnn

for peer in (lmcache, zipnn):
    try:
        peer.download()
    except subprocess.CalledProcessError as error:
        # The tables will name it as missing.
        print(f"{peer.__name__}: {error}", file=sys.stderr)
