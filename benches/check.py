"""Measures again, briefly, and fails where a ratio has fallen behind the committed one.

    python -m benches.check [--rounds N] [--only NAME…] [--write]

The baseline holds ratios, not times: they hardly depend on how fast or how busy a machine is, though they do depend on what it
can do (processors hash at other paces), so that there is one for each processor it was made on. `--write` makes or replaces that
of results.json's machine instead.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import rounds
from .compare import RESULTS, machine, measure, options
from .rows import ROWS, Row, figure

BASELINE = Path(__file__).parent / "baseline.json"
Baseline = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A row's ratio, then and now; None where it was not measured."""

    row: Row
    before: float | None
    now: float | None

    @property
    def limit(self) -> float | None:
        """The worst ratio that passes: the baseline less the row's tolerance."""
        if self.before is None:
            return None
        return self.before * (1 + self.row.tolerance) if self.row.less_is_better else self.before * (1 - self.row.tolerance)

    @property
    def verdict(self) -> str:
        if self.now is None or self.limit is None:
            return "not measured" if self.now is None else "new"
        return "ok" if self.row.meets(self.now, self.limit) else "REGRESSION"


def ratios(groups: Mapping[str, Any]) -> dict[str, float]:
    """Every row that the groups have the times for."""
    found = {row.id: figure(row, groups[row.group]["seconds"]) for row in ROWS if row.group in groups}
    return {id: round(result.ratio, 4) for id, result in found.items() if result}


def compare(baseline: Mapping[str, float], fresh: Mapping[str, float]) -> list[Finding]:
    """Both sides of every row that either has."""
    return [Finding(row, baseline.get(row.id), fresh.get(row.id)) for row in ROWS if row.id in baseline or row.id in fresh]


def baseline_for(processor: str, baselines: list[Baseline]) -> Baseline:
    """That of this processor, or the first one."""
    return next((each for each in baselines if each["machine"]["processor"] == processor), baselines[0])


def table(findings: list[Finding]) -> str:
    """One line a row."""
    width = max((len(finding.row.id) for finding in findings), default=0)

    def cell(value: float | None) -> str:
        return f"{'' if value is None else f'{value:.3g}':>9}"

    lines = [
        f"{finding.row.id:<{width}}{cell(finding.before)}{cell(finding.limit)}{cell(finding.now)}  {finding.verdict}"
        for finding in findings
    ]
    return "\n".join([f"{'row':<{width}}{'baseline':>9}{'limit':>9}{'now':>9}", *lines])


def main() -> int:
    """Measures and compares; the exit code is 1 where something has become slower."""
    parser = options()
    parser.add_argument("--write", action="store_true", help="make results.json the baseline")
    parser.set_defaults(rounds=5)
    told = parser.parse_args()
    if told.write:
        document = json.loads(RESULTS.read_text())
        made = {"machine": document["machine"], "ratios": ratios(document["groups"])}
        processor = made["machine"]["processor"]
        others = [each for each in json.loads(BASELINE.read_text()) if each["machine"]["processor"] != processor]
        BASELINE.write_text(json.dumps([*others, made], indent=1, ensure_ascii=False) + "\n")
        return 0
    baseline = baseline_for(machine()["processor"], json.loads(BASELINE.read_text()))
    if (here := machine()["processor"]) != (there := baseline["machine"]["processor"]):
        rounds.say(
            f"the baseline is of another machine ({there}; this is {here}): look at what differs before you call it a regression"
        )
    told.disk.mkdir(exist_ok=True)
    fresh = ratios(measure(told.only, told.rounds, told.memory, told.disk, rounds.say))
    findings = compare({id: ratio for id, ratio in baseline["ratios"].items() if id in fresh or not told.only}, fresh)
    print(table(findings))
    return int(any(finding.verdict == "REGRESSION" for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
