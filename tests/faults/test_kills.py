"""Processes that are killed before each call that changes something: what is seen is whole, and the same call again completes.

A spread of points is tried; `PFIMG_FAULT_POINTS=all` tries every one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults import scenes
from tests.faults.tracing import Run, alone, apart, needs_ptrace, run
from tests.registries.ipfs_places import IpfsPlace
from tests.registries.s3_places import point_to

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import Kubo, OciServer, S3Server

pytestmark = needs_ptrace

# Points of a scene that are tried, the last ones, where things become visible, among them.
POINTS = os.environ.get("PFIMG_FAULT_POINTS", "12")
LAST = 6


def chosen(points: int, *, dear: bool = False) -> list[int]:
    """Numbers of the points that are tried, fewer of those that are dear."""
    if POINTS == "all" or int(POINTS) >= points:
        return list(range(1, points + 1))
    spread = 2 if dear else int(POINTS) - LAST
    return sorted({1 + at * (points - LAST) // spread for at in range(spread)} | set(range(points - LAST + 1, points + 1)))


def kill_everywhere(
    scene: scenes.Scene, base: Path, *, is_remote: bool = False, renew: Callable[[], object] = lambda: None
) -> tuple[int, int]:
    """Runs a scene to its end, then to each of the points; returns how many there are, and how many kills it survived.

    `renew` takes back what earlier runs have left at a service, before each.
    """
    template, work = base / "template", base / "work"
    template.mkdir()
    scenes.give_number(template, 0)
    apart(lambda: scene.prepare(template))
    shutil.copytree(template, work, symlinks=True)
    apart(renew)
    undisturbed = run(lambda: scene.act(work), work)
    assert undisturbed.code == 0
    expected = apart(lambda: (scene.look(work, True), scene.outcome(work))[1])
    kills = 0
    for number in chosen(undisturbed.points, dear=is_remote):
        shutil.rmtree(work)
        shutil.copytree(template, work, symlinks=True)
        scenes.give_number(work, number)
        apart(renew)
        disturbed = run(lambda: scene.act(work), work, kill_at=number)
        try:
            assert disturbed.code == 0
            apart(partial(completed, scene, work, disturbed, expected))
        except BaseException as error:
            error.add_note(f"killed at point {number} of {undisturbed.points}, before {disturbed.at}")
            raise
        kills += disturbed.killed
    return undisturbed.points, kills


def completed(scene: scenes.Scene, work: Path, disturbed: Run, expected: object) -> None:
    """Looks at what a kill has left, makes the call again, and looks whether all is as if nothing had happened."""
    scene.look(work, not disturbed.killed)
    scene.act(work)
    scene.look(work, True)
    assert scene.outcome(work) == expected
    for name in ("store", "other"):
        if (work / name).exists():
            scenes.sweep(pfimg.PfStore.open(work / name))


def scene_everywhere(name: str, base: Path) -> tuple[int, int]:
    return kill_everywhere(scenes.SCENES[name], base)


@pytest.mark.parametrize("name", scenes.SCENES)
def test_a_kill_at_any_point_leaves_what_is_whole(name: str, scratch: Path, record: Callable[..., None]) -> None:
    points, kills = alone(scene_everywhere, name, scratch)
    record(points=points, kills=kills)
    assert kills >= len(chosen(points)) - LAST  # how threads take turns changes the number of points a little


def requests_everywhere(direction: str, below: str, separator: str, base: Path) -> tuple[int, int]:
    # A push begins anew each time, at a place of its own; all pulls are from one.
    scene = (
        scenes.push(scenes.numbered(below, separator)) if direction == "push" else scenes.pull(lambda _: f"{below}{separator}0")
    )
    return kill_everywhere(scene, base, is_remote=True)


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_kill_at_any_request_to_a_bucket(
    direction: str, minio: S3Server, scratch: Path, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
) -> None:
    point_to(minio, monkeypatch)
    points, kills = alone(requests_everywhere, direction, f"s3://{minio.make_bucket()}", "/", scratch)
    record(points=points, kills=kills)
    assert kills > 0


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_kill_at_any_request_to_an_oci_registry(
    direction: str, distribution: OciServer, scratch: Path, record: Callable[..., None]
) -> None:
    below = f"oci://{distribution.registry}/{distribution.repository()}"
    points, kills = alone(requests_everywhere, direction, below, "-", scratch)
    record(points=points, kills=kills)
    assert kills > 0


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_kill_at_any_request_to_a_hub(direction: str, scratch: Path, record: Callable[..., None]) -> None:
    points, kills = alone(requests_everywhere, direction, "hf://tester/agent", "-", scratch)
    record(points=points, kills=kills)
    assert kills > 0


def node_everywhere(direction: str, kubo: Kubo, base: Path) -> tuple[int, int]:
    # What is pushed is named by its content: the node forgets it before each push.
    if direction == "push":
        scene = replace(scenes.push(lambda _: "ipfs://", scenes.address), prepare=scenes.at_a_node)
        return kill_everywhere(scene, base, is_remote=True, renew=lambda: forget(kubo))
    return kill_everywhere(replace(scenes.pull(scenes.address), prepare=scenes.at_a_node), base, is_remote=True)


def forget(kubo: Kubo) -> None:
    """Takes everything off a node."""
    IpfsPlace(kubo).call("repo/gc")


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_kill_at_any_request_to_a_node(
    direction: str, kubo: Kubo, scratch: Path, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
) -> None:
    monkeypatch.setenv("IPFS_API", kubo.api)
    points, kills = alone(node_everywhere, direction, kubo, scratch)
    record(points=points, kills=kills)
    assert kills > 0
