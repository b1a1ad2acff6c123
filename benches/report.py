"""Writes the tables of docs/performance.md, between their markers, and the plots beside it, from results.json.

    python -m benches.report

The prose around the tables is written by hand: what bounds a row does not change with each run.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from . import plot
from .compare import RESULTS
from .rows import ROWS, Row, figure

DOCS = Path(__file__).parents[1] / "docs"
SIZED = ("pages of 64 KiB", "pages of 73,728 B", "pages of 2 MiB")
PLOTTED = ("pfimg", "LMCache", "plain files", "expert Python")
Document = dict[str, Any]


def grid(titles: Sequence[str], lines: Iterable[Sequence[str]], numbers: int) -> str:
    """A Markdown table whose last `numbers` columns are set to the right."""
    marks = ["---"] * (len(titles) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, marks, *lines))


def ratios(document: Document) -> str:
    """Each row with its ratio, the bar, what was reached for, and which of them it met."""
    lines = [[_escaped(f"`{row.text}`"), row.group, *_cells(row, document)] for row in ROWS]
    return grid(["call", "what", "against", "met", "ratio", "middle half", "rounds", "bar", "reach for"], lines, 5)


def _cells(row: Row, document: Document) -> list[str]:
    form = "{:.1%}" if row.less_is_better else "{:.2f} ×"
    bars = [("≤ " if row.less_is_better else "") + _number(value, form) for value in (row.bar, row.reach)]
    group = document["groups"].get(row.group)
    found = figure(row, group["seconds"]) if group else None
    if found is None:
        return [row.against, "not measured", "", "", "", *bars]
    against = row.against + (f" ({found.against.partition(' + ')[0]})" if len(row.peers) > 1 else "")
    met = "reach" if row.meets(found.ratio, row.reach) else "bar" if row.meets(found.ratio, row.bar) else "no"
    return [
        against,
        met,
        _number(found.ratio, form),
        f"{_number(found.low, form)} … {_number(found.high, form)}",
        str(group["rounds"]),
        *bars,
    ]


def _number(value: float, form: str) -> str:
    return f"{value:,.0f} ×" if value >= 100 else form.format(value)


def rates(document: Document) -> str:
    """GB/s of every system by page size, and of what bounds them."""
    groups = [document["groups"][name] for name in SIZED if name in document["groups"]]
    who: list[tuple[str, str]] = []
    for group in groups:
        for call in ("store", "load", "hash", "copy"):
            who += [pair for name in group["seconds"].get(call, {}) if (pair := (name, call)) not in who]
    order = {call: place for place, call in enumerate(("store", "load", "hash", "copy"))}
    lines = [
        [call, name, *(_rate(group, call, name) for group in groups)]
        for name, call in sorted(who, key=lambda pair: order[pair[1]])
    ]
    return grid(
        ["call", "system", *(f"{group['title'].removeprefix('real pages of ')}, GB/s" for group in groups)], lines, len(groups)
    )


def _rate(group: Document, call: str, name: str) -> str:
    seconds = group["seconds"].get(call, {}).get(name)
    return f"{group['item_bytes'] / median(seconds) / 1e9:.3g}" if seconds else ""


def others(document: Document) -> str:
    """Every other group: time an item, and the rate where there is one."""
    lines = []
    for name, group in document["groups"].items():
        if name in SIZED:
            continue
        for call, by in group["seconds"].items():
            if call == "size":
                continue
            for who, seconds in by.items():
                rate = f"{group['item_bytes'] / median(seconds) / 1e9:.3g}" if group["item_bytes"] else ""
                lines.append([f"{group['title']}, {group['place']}", call, who, f"{median(seconds) * 1e6:,.3g}", rate])
    return grid(["what, where", "call", "system", "µs an item", "GB/s"], lines, 2)


def setting(document: Document) -> str:
    """Machine, versions, days, and what was missing."""
    groups = document["groups"].values()
    days = sorted({group["date"] for group in groups})
    lost = sorted({why for group in groups for why in group["missing"].values()})
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    here = document["machine"]
    machine = f"{here['processor']}, {here['threads']} threads, SHA-256 by {here['kernel']}, {here['memory']}, {here['system']}"
    lines = [textwrap.fill(f"{machine}; measured {' to '.join(days[:1] + days[1:][-1:])}. {versions}.", 120)]
    if lost:
        lines.append(textwrap.fill(f"Not there, and so not in the tables: {'; '.join(lost)}.", 120))
    return "\n\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def plots(document: Document) -> dict[str, str]:
    """SVG by file name: rates by page size, each system beside the others and below its limit."""
    found = {}
    groups = {name: document["groups"][name] for name in SIZED if name in document["groups"]}
    for call in ("store", "load"):
        bars: dict[str, list[float | None]] = {}
        for name in PLOTTED:
            seconds = [group["seconds"][call].get(name) for group in groups.values()]
            if any(seconds):
                pairs = zip(groups.values(), seconds, strict=True)
                bars[name] = [group["item_bytes"] / median(times) / 1e9 if times else None for group, times in pairs]
        limits = [_limit(group, call) for group in groups.values()]
        labels = [group["title"].removeprefix("real pages of ") for group in groups.values()]
        found[f"{call}.svg"] = plot.bars(f"{call}, GB/s by page size", labels, bars, limits)
    return found


def _limit(group: Document, call: str) -> float | None:
    """The harmonic limit of a verified call: hashing, then the fastest unverified files."""
    peers = [median(times) for name in ("LMCache", "plain files") if (times := group["seconds"][call].get(name))]
    alone = group["seconds"].get("hash", {}).get("hash alone")
    return float(group["item_bytes"]) / (min(peers) + median(alone)) / 1e9 if peers and alone else None


def between_markers(text: str, name: str, content: str) -> str:
    """The text with another content between `<!-- name -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no marker <!-- {name} --> in the text")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def main() -> None:
    """Writes the document and its plots."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="what benches.compare has written")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where performance.md is")
    told = parser.parse_args()
    document = json.loads(told.results.read_text())
    text = (told.docs / "performance.md").read_text()
    for name, table in (("setting", setting), ("ratios", ratios), ("rates", rates), ("others", others)):
        text = between_markers(text, name, table(document))
    (told.docs / "performance.md").write_text(text)
    (told.docs / "plots").mkdir(exist_ok=True)
    for name, svg in plots(document).items():
        (told.docs / "plots" / name).write_text(svg)


if __name__ == "__main__":
    main()
