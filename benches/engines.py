"""What the benchmarks in engines share: rounds in which a tier of ours and the engine's own take turns, and the table of them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeAlias

from .groups import BATCH_BYTES, SIZES
from .pages import Batch
from .rounds import Contender, Group, Result, run, say

Contenders: TypeAlias = Callable[[Batch, Path], tuple[Mapping[str, Contender], Callable[[], None]]]
"""What takes turns over some pages, with a directory for what outlives a turn; and what ends it."""


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
