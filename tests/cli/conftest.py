import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pfimg.cli import run


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line of an error."""
        (line,) = self.err.splitlines()
        return line


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("PF_FILE_REG_SIGN_KEY", raising=False)
    monkeypatch.delenv("_PFIMG_COMPLETE", raising=False)


@pytest.fixture
def pf(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command in this process."""

    def call(*args: object) -> Result:
        code = run([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Result(int(code), out, err)

    return call


@pytest.fixture
def process() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """The command as a process of its own."""
    with ExitStack() as stack:

        def start(*args: object, **options: Any) -> "subprocess.Popen[str]":
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
            running = subprocess.Popen([sys.executable, "-m", "pfimg", *map(str, args)], text=True, **pipes)
            stack.enter_context(running)
            stack.callback(running.kill)  # nothing outlives a test that failed
            return running

        yield start


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """A small directory: a file, an executable, a link, an empty directory, a name that markup would swallow."""
    root = tmp_path / "sandbox"
    (root / "src" / "empty").mkdir(parents=True)
    (root / "src" / "main.py").write_text("print('hello')\n" * 100)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "latest").symlink_to("src/main.py")
    (root / "[bold]notes.txt").write_text("x" * 2500)
    return root


@pytest.fixture
def pages(tmp_path: Path) -> tuple[Path, Path]:
    """Two .npy files of 6 pages."""
    np = pytest.importorskip("numpy")
    numbers = np.random.default_rng(1)
    paths = tmp_path / "k.npy", tmp_path / "v.npy"
    for path in paths:
        np.save(path, numbers.integers(0, 2**16, (6, 2, 4, 3, 8), dtype=np.uint16))
    return paths


@pytest.fixture
def image(pf: Command, sandbox: Path) -> str:
    """The id of an image of the sandbox."""
    return pf("snapshot", sandbox, "--agent", "tester").out.strip()
