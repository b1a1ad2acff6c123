"""The servers as fixtures: one of each for a whole run, started when a test first asks; so names in it must be a test's own.

What is missing is built before the first test, and only if a test that was picked needs it: building takes minutes, and a test
may not. (A parameter through which a test asks for a fixture says so: `pytest.param(..., marks=pytest.mark.server("minio"))`.)
Where a server cannot be had its tests are skipped, and say why; with PFIMG_REQUIRE_SERVERS=1 they fail.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest
from tests import servers
from tests.servers import binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

PROGRAMS = {
    "minio": "minio",
    "versitygw": "versitygw",
    "distribution": "distribution",
    "distribution_basic": "distribution",
    "distribution_token": "distribution",
    "distribution_tls": "distribution",
    "kubo": "kubo",
    "azurite": "azurite",
}
# Why a build failed; it is not tried again.
FAILED: dict[str, servers.Unavailable] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks what asks for a server by a fixture, so that `-m "not server"` picks what needs none."""
    if isinstance(item, pytest.Function):
        for name in PROGRAMS.keys() & set(item.fixturenames):
            item.add_marker(pytest.mark.server(name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing, as far as the picked tests need it."""
    if session.config.option.collectonly:
        return
    names = {name for item in session.items for mark in item.iter_markers("server") for name in mark.args}
    missing = sorted({PROGRAMS[name] for name in names if not binaries.cached(PROGRAMS[name]).exists()})
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        for name in missing:
            try:
                binaries.get(name, lambda line: print(line, flush=True))
            except servers.Unavailable as error:
                FAILED[name] = error


@contextmanager
def _had(program: str, server: AbstractContextManager[T]) -> Iterator[T]:
    with ExitStack() as stack:
        try:
            if program in FAILED:
                raise FAILED[program]
            running = stack.enter_context(server)
        except servers.Unavailable as error:
            if os.environ.get("PFIMG_REQUIRE_SERVERS") == "1":
                pytest.fail(f"{error}\n(PFIMG_REQUIRE_SERVERS=1 makes this a failure)", pytrace=False)
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="session")
def minio() -> Iterator[servers.S3Server]:
    with _had("minio", servers.minio()) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw() -> Iterator[servers.S3Server]:
    with _had("versitygw", servers.versitygw()) as server:
        yield server


@pytest.fixture(scope="session")
def distribution() -> Iterator[servers.OciServer]:
    """A registry that asks for no credentials."""
    with _had("distribution", servers.distribution()) as server:
        yield server


@pytest.fixture(scope="session")
def distribution_basic() -> Iterator[servers.OciServer]:
    """A registry that asks for a password."""
    with _had("distribution", servers.distribution("basic")) as server:
        yield server


@pytest.fixture(scope="session")
def distribution_token() -> Iterator[servers.OciServer]:
    """A registry that sends its clients to a token service, which is in `tokens`."""
    with _had("distribution", servers.distribution("token")) as server:
        yield server


@pytest.fixture(scope="session")
def distribution_tls() -> Iterator[servers.OciServer]:
    """A registry that speaks TLS, and asks for a password."""
    with _had("distribution", servers.distribution("basic", tls=True)) as server:
        yield server


@pytest.fixture(scope="session")
def kubo() -> Iterator[servers.Kubo]:
    with _had("kubo", servers.kubo()) as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[servers.AzureServer]:
    with _had("azurite", servers.azurite()) as server:
        yield server


@pytest.fixture(scope="session")
def cosign() -> Path:
    """What others check signatures with. It takes many minutes to build, so that no test run does: `get cosign` first."""
    program = binaries.cached("cosign")
    if not program.exists():
        pytest.skip("cosign is not there: python -m tests.servers get cosign")
    return program


@pytest.fixture(scope="session")
def web_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """One nginx for the directories of all tests; gives the address of a path."""
    base = tmp_path_factory.getbasetemp()
    with _had("nginx", servers.nginx(base)) as server:
        yield lambda path: f"{server.url}/{path.relative_to(base)}"


class ServeDirectory(Protocol):
    def __call__(self, root: Path, *, auth: bool = False, tls: bool = False) -> servers.Nginx: ...


@pytest.fixture
def nginx() -> Iterator[ServeDirectory]:
    """Serves any directories until the end of the test."""
    with ExitStack() as stack:

        def serve(root: Path, *, auth: bool = False, tls: bool = False) -> servers.Nginx:
            return stack.enter_context(_had("nginx", servers.nginx(root, auth=auth, tls=tls)))

        yield serve
