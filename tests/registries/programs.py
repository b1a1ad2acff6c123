"""Programs of others that tests need: where one is not there they are skipped, and with PFIMG_REQUIRE_SERVERS=1 they fail."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str, how: str) -> pytest.MarkDecorator:
    """For tests that run a program; `how` tells how to get it. A test that runs without it fails for that very reason."""
    absent = shutil.which(program) is None and os.environ.get("PFIMG_REQUIRE_SERVERS") != "1"
    return pytest.mark.skipif(absent, reason=f"needs {program}: {how}")


needs_reference = needs("pf", "cargo install processfork --version 1.0.15 --locked")
needs_skopeo = needs("skopeo", "apt-get install skopeo")
