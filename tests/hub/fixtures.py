"""The Hub of the tests, as tests ask for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub.client import speaking_to
from tests.hub.server import Hub


@pytest.fixture(scope="session")
def _hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(_hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    """A Hugging Face Hub without repositories, to which the environment leads; a request it did not expect fails the test."""
    _hub.clear()
    with speaking_to(_hub, tmp_path / "hf-home"):
        yield _hub
    assert _hub.errors == []
