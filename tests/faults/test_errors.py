"""System calls that fail: a full disk, a quota that is used up, a disk that errs, at any call that writes, syncs, names or makes.

The command ends with one line that says what and where, nothing half-made is seen or left, and the same command completes. A
spread of the calls is tried, of each kind some; `PFIMG_FAULT_POINTS=all` tries each with every error.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults import scenes
from tests.faults.tracing import Run, alone, apart, can_fail, needs_ptrace, run

import pfimg
from pfimg.cli import main
from pfimg.cli.exits import Exit, code_of, line_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [needs_ptrace, can_fail]

POINTS = os.environ.get("PFIMG_FAULT_POINTS", "10")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# Without these all is as good: what makes room for a file or copies it faster, what an interrupted `verify` would go on from, and
# that a temporary goes away whose content has its name.
MAY_FAIL = re.compile(r"(fallocate|copy_file_range) |.*/verify\.log( create)?$|unlink(at)? .*\.tmp[^/]*$")


def command(name: str, root: Path) -> list[str] | None:
    """The command that does what a scene does; None where there is none that does all of it, or does it twice."""
    kind, _, form = name.partition("-")
    options = {"push-packed": ["--layout", "packed"], "push-floats": ["--codec", "float"], "pull-partial": ["--layers", "world"]}
    store, other = (["--store", str(root / place)] for place in ("store", "other"))
    match kind:
        case "snapshot" if not form:
            return ["snapshot", str(root / "src"), "--agent", "tester", *store]
        case "push":
            image = scenes.the_image(pfimg.PfStore.open(root / "store"))
            return ["push", image, (scenes.named if form == "named" else scenes.directory)(root), *options.get(name, []), *store]
        case "pull":
            trust = ["--trust", str(root / "key.pub")] if form == "with-trust" else []
            return ["pull", scenes.directory(root), *options.get(name, []), *trust, *other]
        case "copy":
            return ["copy", scenes.named(root), f"file://{root}/copied#agent", *store]
        case "repair":
            return ["verify", "--repair-from", scenes.directory(root), *store]
    return None


def speak(name: str, root: Path, told: Path, args: list[str] | None) -> int:
    """Does what a scene does as the command would, which writes what goes wrong into a file; returns the exit code."""
    tempfile.tempdir = str(root.parent)
    for number, path in ((1, os.devnull), (2, told)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    try:
        if args is not None:
            return main(args)
        scenes.SCENES[name].act(root)
    except Exception as error:  # noqa: BLE001 - any is told in one line
        os.write(2, f"pfimg: error: {line_of(error)}\n".encode())
        return code_of(error)
    finally:
        sys.stderr.flush()
    return 0


def chosen(calls: list[str], root: Path) -> list[tuple[int, int]]:
    """Numbers of points, each with an error: of each kind of call, and of what it is done to, the last, the first and others."""
    if POINTS == "all":
        return [(at, error) for at in range(1, len(calls) + 1) for error in ERRORS]
    kinds: dict[tuple[str, ...], list[int]] = {}
    for at, call in enumerate(calls, start=1):
        name, *_, path = call.removesuffix(" create").split(" ")
        kinds.setdefault((name, *os.path.relpath(path, root).split("/")[:2]), []).append(at)
    found: list[int] = []
    while len(found) < min(int(POINTS), len(calls)):
        found += [points.pop(-1 if len(points) % 2 else 0) for points in kinds.values() if points]
    # A disk that errs is told by a sync more than by anything else.
    return [(at, errno.EIO if "sync" in calls[at - 1] else ERRORS[n % 3]) for n, at in enumerate(sorted(found[: int(POINTS)]))]


def fail_everywhere(name: str, base: Path) -> tuple[int, int, int]:
    """Runs a scene to its end, then with errors at points; returns how many points there are, were tried, and were told."""
    scene = scenes.SCENES[name]
    template, work, told = base / "template", base / "work", base / "told"
    template.mkdir()
    apart(lambda: scene.prepare(template))
    shutil.copytree(template, work, symlinks=True)
    args = apart(lambda: command(name, work))
    undisturbed = run(lambda: speak(name, work, told, args), work, fail_at=0)
    assert undisturbed.code == 0, told.read_text()
    expected = apart(lambda: (scene.look(work, True), scene.outcome(work))[1])
    points, refused = chosen(undisturbed.calls, work), 0
    for number, error in points:
        shutil.rmtree(work)
        shutil.copytree(template, work, symlinks=True)
        disturbed = run(lambda: speak(name, work, told, args), work, fail_at=number, error=error)
        try:
            apart(partial(look, name, work, told, disturbed, error))
            apart(partial(completes, name, work, told, args, expected))
        except BaseException as failure:
            failure.add_note(f"{os.strerror(error)} at point {number} of {undisturbed.points}, {disturbed.at}")
            failure.add_note(told.read_text())
            raise
        refused += disturbed.code != 0
    return undisturbed.points, len(points), refused


def look(name: str, work: Path, told: Path, disturbed: Run, error: int) -> None:
    """Looks at how a command ended, and at what it has left."""
    scene, lines = scenes.SCENES[name], told.read_text().splitlines()
    errors = [line for line in lines if not line.startswith("pfimg: warning: ")]
    naming = [line for line in lines if os.strerror(error).lower() in line.lower() and str(work) in line]
    if disturbed.code == Exit.INTEGRITY:
        # A store that could not be repaired: `verify` has reported what is damaged still.
        assert errors == []
        assert naming
    elif disturbed.code != 0:
        assert [line.startswith("pfimg: error: ") for line in errors] == [True]
        assert errors[0] in naming
    elif disturbed.at and not MAY_FAIL.match(disturbed.at):
        # A repair goes on with what it can: damage that cannot be moved to quarantine is replaced, what failed is tried again.
        assert name == "repair", "an error was not told"
        assert any(os.strerror(error) in line for line in lines), "an error was not told"
    assert disturbed.at.startswith("unlink") or [path for path in work.rglob("*") if ".tmp" in path.name] == []
    scene.look(work, disturbed.code == 0)


def completes(name: str, work: Path, told: Path, args: list[str] | None, expected: object) -> None:
    """Makes the call again; all is as if nothing had happened."""
    scene = scenes.SCENES[name]
    assert speak(name, work, told, args) == 0
    scene.look(work, True)
    assert scene.outcome(work) == expected


@pytest.mark.parametrize("name", scenes.SCENES)
def test_an_error_of_the_system_anywhere_is_told(name: str, scratch: Path, record: Callable[..., None]) -> None:
    points, tried, refused = alone(fail_everywhere, name, scratch)
    record(points=points, tried=tried, refused=refused)
    assert refused > 0
