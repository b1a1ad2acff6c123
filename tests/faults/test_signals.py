"""Signals that reach the command anywhere: it ends with its code, nothing half-made is seen, and the same command completes."""

from __future__ import annotations

import shutil
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults import scenes
from tests.faults.tracing import Run, alone, apart, needs_ptrace, run

import pfimg
from pfimg.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = needs_ptrace

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
POINTS = 6


def command(name: str, root: Path) -> list[str]:
    """The command that does what a scene does."""
    store = ["--store", str(root / ("other" if name == "pull" else "store"))]
    if name == "snapshot":
        return ["snapshot", str(root / "src"), "--agent", "tester", *store]
    if name == "collect":
        return ["gc", "--grace", "0", *store]
    if name == "pull":
        return ["pull", scenes.directory(root), *store]
    image = scenes.the_image(pfimg.PfStore.open(root / "store"))
    return [name, image, scenes.directory(root) if name == "push" else str(root / "out"), *store]


def speak(args: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which it is not where the tests run in the background
    sys.stderr = sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - the process ends with it
    try:
        return main(args)
    except SystemExit as end:  # how SIGTERM ends it
        return int(end.code or 0)


def signal_everywhere(name: str, base: Path) -> int:
    """Sends signals at a spread of points; returns at how many."""
    scene = scenes.SCENES[name]
    template, work = base / "template", base / "work"
    template.mkdir()
    apart(lambda: scene.prepare(template))
    ended = 0
    points = POINTS
    for at in range(POINTS + 1):
        if work.exists():
            shutil.rmtree(work)
        shutil.copytree(template, work, symlinks=True)
        args = apart(lambda: command(name, work))
        number = (signal.SIGINT, signal.SIGTERM)[at % 2]
        # The first run is left alone and counts the points.
        outcome = run(lambda args=args: speak(args), work, kill_at=at and 1 + (at - 1) * points // POINTS, number=number)  # type: ignore[misc]
        points = points if at else outcome.points
        assert outcome.code in ((0, CODES[number]) if at else (0,)), (at, outcome)
        apart(partial(look, scene, work, outcome))
        ended += outcome.code == CODES[number]
    return ended


def look(scene: scenes.Scene, work: Path, outcome: Run) -> None:
    scene.look(work, outcome.code == 0)
    scene.act(work)
    scene.look(work, True)


@pytest.mark.parametrize("name", ["snapshot", "push", "pull", "collect", "checkout"])
def test_a_signal_anywhere_ends_the_command(name: str, scratch: Path, record: Callable[..., None]) -> None:
    ended = alone(signal_everywhere, name, scratch)
    record(ended=ended)
    assert ended > 0
