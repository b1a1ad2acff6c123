"""Rounds in which contenders take turns, and the times that they took.

Whatever else the machine does then hurts all alike, and a ratio within a round says more than a rate. A round in which another
process used the processor counts for nothing and is repeated.
"""

import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peers import Missing

# Gets an empty place for its files; returns seconds an item for each call that it makes.
Contender = Callable[[Path], Mapping[str, float]]
Seconds = dict[str, dict[str, list[float]]]

_TICK = os.sysconf("SC_CLK_TCK")
_MOST_ROUNDS = 3  # times as many as wanted, however disturbed


@dataclass(frozen=True)
class Group:
    """What is measured together.

    Attributes:
        name: Its key in results.json.
        title: What the items are, for people.
        item_bytes: What makes a rate of the seconds an item; 0 where only the time counts.
        renew: Called with the number of each round before it, so that nothing is stored twice.
        contenders: Makes them, ours first. One that is not there raises `Missing` when it is made or run.
        on_disk: Files are kept on a disk, not in memory.
        most_rounds: As many as a slow group gets, and then none to warm up.
    """

    name: str
    title: str
    item_bytes: int
    contenders: Mapping[str, Contender]
    renew: Callable[[int], object] = lambda _: None
    on_disk: bool = False
    most_rounds: int | None = None


@dataclass
class Result:
    """Seconds an item by call and contender, one a round."""

    seconds: Seconds = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    missing: dict[str, str] = field(default_factory=dict)
    disturbed: int = 0


def run(group: Group, rounds: int, base: Path, say: Callable[[str], None]) -> Result:
    """Measures a group in fresh directories below `base`. The first round only warms up, but in groups that take minutes."""
    result = Result()
    rounds = min(rounds, group.most_rounds or rounds)
    kept, tried = 0, 0
    while kept < rounds and tried <= _MOST_ROUNDS * rounds:
        group.renew(tried)
        times, disturbed = _round(group, tried, base, result.missing)
        tried += 1
        if tried == 1 and group.most_rounds is None:
            continue
        # Rather a disturbed figure, and a word about it, than none.
        result.disturbed += disturbed
        if disturbed and tried + rounds - kept <= _MOST_ROUNDS * rounds:
            continue
        kept += 1
        for (call, contender), seconds in times.items():
            result.seconds[call][contender].append(seconds)
        say(f"{group.name}: round {kept} of {rounds}" + (f", {result.disturbed} disturbed" if result.disturbed else ""))
    # Only now: a file system that has just deleted many files is slow to create others.
    for directory in base.iterdir():
        shutil.rmtree(directory)
    return result


def _round(group: Group, number: int, base: Path, missing: dict[str, str]) -> tuple[dict[tuple[str, str], float], bool]:
    times: dict[tuple[str, str], float] = {}
    disturbed = False
    names = [name for name in group.contenders if name not in missing]
    start = number % max(1, len(names))
    for name in names[start:] + names[:start]:
        place = base / f"{number}-{names.index(name)}"
        if group.on_disk:
            os.sync()  # what the one before left is not this one's work
        meter = Meter()
        try:
            for call, seconds in group.contenders[name](place).items():
                times[call, name] = seconds
        except Missing as error:
            missing[name] = str(error)
        disturbed |= meter.disturbed()
        if not group.on_disk:
            shutil.rmtree(place, ignore_errors=True)  # its memory is used again, warm
    return times, disturbed


class Meter:
    """Tells whether others used the processors since it was made: their share, without the kernel's own threads."""

    _slack_seconds = 0.03
    _slack_share = 0.1

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._others = _others_seconds()

    def disturbed(self) -> bool:
        elapsed = time.perf_counter() - self._start
        return _others_seconds() - self._others > self._slack_seconds + self._slack_share * elapsed


def _others_seconds() -> float:
    try:
        total = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:  # not Linux: every round counts
        return 0.0
    user, nice, system, _, _, _, _, steal = map(int, total[1:9])
    own, parents, ticks = os.getpid(), {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # with that of children that have ended
    ours = sum(used for pid, used in ticks.items() if _descends(pid, {own, 2}, parents))
    return (user + nice + system + steal - ours) / _TICK


def _descends(pid: int, ancestors: set[int], parents: Mapping[int, int]) -> bool:
    while pid not in ancestors:
        if pid not in parents:
            return False
        pid = parents[pid]
    return True


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds it took."""
    start = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - start
