"""The public types hold for a user who checks strictly, on the oldest and the newest Python."""

import subprocess
import sys
from pathlib import Path

import pytest

USER_CODE = Path(__file__).with_name("user_code.py")


@pytest.mark.parametrize("version", ["3.11", "3.14"])
def test_user_code_passes_the_strict_type_checker(tmp_path: Path, version: str) -> None:
    # Away from the repository, so that neither its settings nor its sources decide, but what is installed.
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-version",
        version,
        "--cache-dir",
        str(tmp_path / "cache"),
        str(USER_CODE),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
