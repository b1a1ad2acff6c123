"""Rates of all systems, their rounds interleaved, as the table in docs/performance.md.

    python -m benches.compare [--rounds N] [--json FILE]

A figure is the median over the rounds; a ratio is the median of the ratios within each round, so that whatever else the
machine does hurts both sides alike.
"""

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import mkdtemp
from time import perf_counter

import numpy as np

from .systems import SIZES, SYSTEMS, real_pages, share

TOTAL_BYTES = 128 << 20
Rates = dict[tuple[str, str, str], list[float]]


def measure(rounds: int, base: Path) -> Rates:
    """GB/s by (size, system, "store" or "load"), one entry a round; the first round only warms up."""
    rates: Rates = defaultdict(list)
    for size, page_bytes in SIZES.items():
        out = np.zeros_like(real_pages(page_bytes, TOTAL_BYTES, 0))
        for round_ in range(rounds + 1):
            pages = real_pages(page_bytes, TOTAL_BYTES, round_)
            for system in SYSTEMS:
                # A fresh directory each time; all are deleted at the end, since deleting slows down what is created next.
                subject = system(base / f"{page_bytes}-{round_}-{system.name}")
                batch, rows = share(system, pages), share(system, out)
                start = perf_counter()
                names = subject.store(batch)
                stored = perf_counter()
                subject.load(names, rows)
                loaded = perf_counter()
                if not np.array_equal(rows, batch):
                    sys.exit(f"{system.name} did not give back what it got")
                rows[:] = 0
                if round_ > 0:
                    rates[size, system.name, "store"].append(batch.nbytes / (stored - start) / 1e9)
                    rates[size, system.name, "load"].append(batch.nbytes / (loaded - stored) / 1e9)
            print(f"{size}: round {round_} of {rounds}", file=sys.stderr)
        for directory in base.iterdir():
            rmtree(directory)
    return rates


def table(rates: Rates) -> str:
    """The medians and ratios in Markdown."""
    ours, *others = (system.name for system in SYSTEMS)
    titles = ["page size", "call", *(f"{name} GB/s" for name in (ours, *others)), *(f"× {name}" for name in others)]
    lines = [
        "| " + " | ".join(titles) + " |",
        "|---|---|" + "---:|" * (1 + 2 * len(others)),
    ]
    for size in SIZES:
        for call in ("store", "load"):
            own = rates[size, ours, call]
            cells = [f"{median(rates[size, name, call]):.3g}" for name in (ours, *others)]
            cells += [f"{median(a / b for a, b in zip(own, rates[size, name, call], strict=True)):.3g} ×" for name in others]
            lines.append(f"| {size} | {call} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7)")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    shared_memory = Path("/dev/shm")
    base = Path(mkdtemp(prefix="pfimg-bench-", dir=shared_memory if shared_memory.is_dir() else None))
    try:
        rates = measure(options.rounds, base)
    finally:
        rmtree(base)
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].split(": ")[1].strip() if cpus else platform.processor()
    print(f"{os.cpu_count()} cores, {model}, {platform.system()}, Python {platform.python_version()}, in {base.parent}\n")
    print(table(rates))
    if options.json:
        rows = [{"size": size, "system": name, "call": call, "gb_per_s": values} for (size, name, call), values in rates.items()]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
