"""A place for many small files, and for figures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: its system calls are the same, and nothing waits for a disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory, prefix="pfimg-") as directory:
        yield Path(directory)


@pytest.fixture
def record(request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Notes figures of a test; `--junitxml` writes them down."""

    def note(**figures: int) -> None:
        for name, figure in figures.items():
            record_testsuite_property(f"{request.node.name}.{name}", figure)

    return note
