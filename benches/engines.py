"""What the benchmarks in engines share: tiers of ours and the engine's own that take turns, and the table of them."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias, TypeVar

from .groups import BATCH_BYTES, SIZES
from .pages import Batch
from .rounds import Contender, Group, Result, run, say

Contenders: TypeAlias = Callable[[Batch, Path], tuple[Mapping[str, Contender], Callable[[], None]]]
"""What takes turns over some pages, with a directory for what outlives a turn; and what ends it."""


Flush: TypeAlias = Callable[[], None] | None
"""Waits until a tier has written what it writes behind; None for one that does not."""

Words: TypeAlias = dict[str, str | int]

_Tier = TypeVar("_Tier")


def words(batch: Batch, base: Path) -> dict[str, Words]:
    """What each tier of ours is configured with: room for two batches, so that nothing that is loaded has made room."""
    room = 2 * len(batch) * batch.page_bytes
    memory: Words = {"arena_bytes": room}
    return {
        "pfimg, memory": memory,
        "pfimg, memory, blake3": memory | {"digest": "blake3"},
        "pfimg, memory and directory": memory | {"path": str(base / "tier"), "store_bytes": room},
    }


def fresh(root: Path, batch: Batch) -> list[str]:
    """A name a page that no turn had before."""
    return [f"{root.name}-{place}" for place in range(len(batch))]


def in_turn(
    ours: Mapping[str, _Tier],
    theirs: str,
    make: Callable[[Path], _Tier],
    turn: Callable[[_Tier, Path, Flush], dict[str, float]],
    *,
    flush: Callable[[_Tier], None],
    close: Callable[[_Tier], None],
) -> tuple[Mapping[str, Contender], Callable[[], None]]:
    """Tiers of ours, which stay, and one of theirs, which is made for each turn, as contenders."""

    def in_ours(tier: _Tier, root: Path) -> dict[str, float]:
        return turn(tier, root, partial(flush, tier))

    def in_theirs(root: Path) -> dict[str, float]:
        root.mkdir()
        tier = make(root)
        seconds = turn(tier, root, None)
        close(tier)
        return seconds

    def end() -> None:
        for tier in ours.values():
            close(tier)

    return {name: partial(in_ours, tier) for name, tier in ours.items()} | {theirs: in_theirs}, end


@contextmanager
def asked(doc: str | None) -> Iterator[tuple[int, Path]]:
    """The rounds that the command line asks for, and a directory in memory while they last."""
    parser = argparse.ArgumentParser(description=str(doc).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    base = Path(tempfile.mkdtemp(prefix="pfimg-bench-", dir="/dev/shm"))
    try:
        yield rounds, base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def compare(contenders: Contenders, theirs: str, base: Path, rounds: int) -> None:
    """Prints a table of rates, and of ratios to the contender of that name, for small and for large pages."""
    print(f"| pages of | call | contender | a page, or a key | against {theirs} |", "|---|---|---|---:|---:|", sep="\n")
    for label in ("64 KiB", "2 MiB"):
        batch = Batch(SIZES[label], BATCH_BYTES)
        place = base / label.replace(" ", "-")
        turns = place / "turns"
        turns.mkdir(parents=True)
        systems, end = contenders(batch, place)
        result = run(Group(label, label, batch.page_bytes, systems, batch.renew), rounds, turns, say)
        end()
        shutil.rmtree(place)
        print(_rows(label, result, theirs), flush=True)
        if result.disturbed:
            say(f"{label}: others used the processors in {result.disturbed} rounds")


def _rows(label: str, result: Result, theirs: str) -> str:
    rows = []
    for call, contender in result.seconds.items():
        for name, seconds in contender.items():
            ratio = median(peer / mine for peer, mine in zip(contender[theirs], seconds, strict=True))
            middle = median(seconds)
            rate = f"{middle * 1e6:.2f} µs" if call == "look-up" else f"{SIZES[label] / middle / 1e9:.2f} GB/s"
            rows.append(f"| {label} | {call} | {name} | {rate} | {ratio:.2f} × |")
    return "\n".join(rows)
