"""Where peers come from that are no ordinary dependency, and what says that one is not there."""

import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "peers"


class Missing(Exception):  # noqa: N818 - a state that tables report, no failure
    """A peer that this machine does not have; the text says which, and how to get it."""


def pip(*arguments: str) -> None:
    """Runs this Python's pip."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)
