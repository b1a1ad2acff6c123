"""Power cuts: what had returned is there, what is seen is whole, and nothing wrong is ever returned.

Each call is recorded once. Of the states in which the disk may be found after each of its steps, the extremes and some chosen by
chance are made real and looked at; `PFIMG_FAULT_STATES=10` tries so many at each step.
"""

from __future__ import annotations

import os
import random
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults import power_cuts, scenes
from tests.faults.tracing import alone, apart, needs_ptrace, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = needs_ptrace

CHANCES = int(os.environ.get("PFIMG_FAULT_STATES", "1"))
# Changes that were not synced have not happened, and their data is lost; or the names are there, and the data is not.
EXTREMES: list[tuple[float, str | None]] = [(0.0, "old"), (1.0, "empty"), (1.0, "torn")]


def look(scene: scenes.Scene, root: Path, states: list[tuple[power_cuts.State, bool, int]]) -> None:
    """Makes states real and looks at them; each comes with whether the call had returned, and after which step."""
    for state, returned, step in states:
        root.mkdir()
        power_cuts.write(state, root)
        try:
            scene.look(root, returned)
        except BaseException as error:
            error.add_note(
                f"after step {step}, {'returned' if returned else 'not returned'}: {sorted(name for name, _, _ in state)}"
            )
            raise
        shutil.rmtree(root)


def cut_everywhere(name: str, base: Path) -> tuple[int, int]:
    """Runs a scene once; returns how many steps it took, and how many different states were looked at."""
    os.environ["PFIMG_THREADS"] = "1"  # so that calls end in the order in which they are seen to end
    scene = scenes.SCENES[name]
    work = base / "work"
    work.mkdir()
    apart(lambda: scene.prepare(work))
    disk = power_cuts.Disk(work)

    def call() -> None:
        scene.act(work)
        os.write(1, b"returned")

    recorded = run(call, work, record=True)
    assert recorded.code == 0
    shutil.rmtree(work)
    chance = random.Random(name)
    seen: dict[tuple[power_cuts.State, bool], int] = {}
    returned = False
    for step, event in enumerate(recorded.events):
        returned |= event.call == "say" and event.data == b"returned"
        disk.follow(event)
        for names, data in [*EXTREMES, *[(0.5, None)] * CHANCES]:
            seen.setdefault((disk.state(chance, names, data), returned), step)
    assert returned
    apart(partial(look, scene, work, [(state, returned, step) for (state, returned), step in seen.items()]))
    return len(recorded.events), len(seen)


# A restored directory is not promised to be on stable storage, and a repair asks the registry again.
@pytest.mark.parametrize("name", sorted(set(scenes.SCENES) - {"checkout", "repair"}))
def test_what_returned_outlives_a_power_cut(name: str, scratch: Path, record: Callable[..., None]) -> None:
    steps, states = alone(cut_everywhere, name, scratch)
    record(steps=steps, states=states)
    assert states >= steps // 2
