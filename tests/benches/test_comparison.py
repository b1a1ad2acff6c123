"""What turns times into a table, a plot and a verdict. Times are made up here; nothing is measured."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import zstandard
from benches.check import Finding
from benches.pages import Batch, masks, sample
from benches.peers import Missing
from benches.rows import LIMIT, ROWS, Row, figure

from benches import check, compare, plot, report, rounds

ROW = Row("pages", "store", "put_many", ("fast peer", "slow peer"), bar=1.0, reach=2.0, tolerance=0.1)


def times(**contenders: list[float]) -> dict[str, dict[str, list[float]]]:
    return {"store": {name.replace("_", " "): seconds for name, seconds in contenders.items()}}


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # The machine was three times slower in the second round, for both.
    found = figure(ROW, times(pfimg=[1.0, 3.0, 1.0], fast_peer=[2.0, 6.0, 1.9], slow_peer=[9.0, 9.0, 9.0]))
    assert found is not None
    assert (found.ratio, found.against) == (2.0, "fast peer")
    assert found.low <= found.ratio <= found.high


def test_a_row_without_either_side_has_no_figure() -> None:
    assert figure(ROW, times(fast_peer=[1.0])) is None
    assert figure(ROW, times(pfimg=[1.0])) is None
    found = figure(ROW, times(pfimg=[1.0], slow_peer=[4.0]))
    assert found is not None
    assert (found.ratio, found.against) == (4.0, "slow peer")


def test_the_harmonic_limit_adds_the_time_of_hashing() -> None:
    seconds = times(pfimg=[4.0], LMCache=[2.0], plain_files=[9.0]) | {"hash": {"hash alone": [1.0]}}
    found = figure(dataclasses.replace(ROW, peers=LIMIT), seconds)
    assert found is not None
    assert found.ratio == 0.75  # a program that hashes and writes one after the other needs 3 seconds at least


def test_sizes_are_no_ratios_of_two_contenders() -> None:
    row = dataclasses.replace(ROW, call="size")
    found = figure(row, {"size": {"pfimg": [0.67, 0.67], "ZipNN": [0.7, 0.7]}})
    assert found is not None
    assert found.ratio == 0.67


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    # What was reached for is never easier than the bar.
    assert all(row.reach <= row.bar if row.less_is_better else row.reach >= row.bar for row in ROWS)


@pytest.mark.parametrize(
    ("now", "verdict"), [(2.0, "ok"), (1.81, "ok"), (1.79, "REGRESSION"), (9.0, "ok"), (None, "not measured")]
)
def test_what_falls_behind_the_baseline_is_a_regression(now: float | None, verdict: str) -> None:
    assert Finding(ROW, before=2.0, now=now).verdict == verdict


def test_a_larger_size_is_a_regression() -> None:
    row = dataclasses.replace(ROW, call="size", tolerance=0.01)
    assert Finding(row, before=0.67, now=0.66).verdict == "ok"
    assert Finding(row, before=0.67, now=0.69).verdict == "REGRESSION"


def test_a_machine_is_held_against_itself() -> None:
    baselines: list[check.Baseline] = [{"machine": {"processor": name}, "ratios": {}} for name in ("first", "second")]
    assert check.baseline_for("second", baselines) is baselines[1]
    assert check.baseline_for("another", baselines) is baselines[0]


def test_a_baseline_is_compared_row_by_row() -> None:
    first, second, third = (row.id for row in ROWS[:3])
    findings = check.compare({first: 1.0, second: 1.0}, {first: 0.5, third: 1.0})
    assert [finding.verdict for finding in findings] == ["REGRESSION", "not measured", "new"]
    lines = check.table(findings).splitlines()
    assert lines[1].startswith(first)
    assert lines[1].endswith("REGRESSION")
    assert len(lines) == 4


def test_rounds_take_turns_and_leave_nothing(tmp_path: Path) -> None:
    turns: list[str] = []

    def contender(name: str, seconds: float) -> rounds.Contender:
        def run(root: Path) -> dict[str, float]:
            assert not root.exists()
            root.mkdir()
            turns.append(name)
            return {"store": seconds}

        return run

    def absent(_root: Path) -> dict[str, float]:
        raise Missing("this peer: not here")

    contenders = {"pfimg": contender("pfimg", 1.0), "absent": absent, "peer": contender("peer", 2.0)}
    result = rounds.run(rounds.Group("g", "g", 1, contenders), 3, tmp_path, lambda _: None)
    assert result.seconds == {"store": {"pfimg": [1.0] * 3, "peer": [2.0] * 3}}
    assert result.missing == {"absent": "this peer: not here"}
    assert turns.count("pfimg") == turns.count("peer") >= 4  # one round warms up
    assert set(zip(turns[2::2], turns[3::2], strict=False)) == {("pfimg", "peer"), ("peer", "pfimg")}
    assert list(tmp_path.iterdir()) == []


def test_rounds_of_two_runs_are_added() -> None:
    def group(seconds: dict[str, list[float]]) -> dict[str, object]:
        return {"rounds": 1, "disturbed_rounds": 1, "missing": {}, "date": "2026-01-02", "seconds": {"store": seconds}}

    added = compare._added(group({"pfimg": [1.0], "gone": [9.0]}), group({"pfimg": [2.0], "new": [3.0]}))
    assert added == group({"pfimg": [1.0, 2.0]}) | {"rounds": 2, "disturbed_rounds": 2}
    assert compare._added(None, added) == added


def test_pages_are_unique_and_stay_as_real_as_they_were() -> None:
    batch = Batch(73_728, 48 * 73_728)
    original = sample().reshape(48, -1)
    seen = set()
    for salt in (0, 1, 7):
        batch.renew(salt)
        seen |= {bytes(page) for page in batch.pages}
        # Signs and exponents are those of the sample.
        assert np.array_equal(batch.pages.view(np.uint16) >> 7, original.view(np.uint16) >> 7)
        compress = zstandard.ZstdCompressor(level=1).compress
        saved = [sum(len(compress(page.tobytes())) for page in pages) / original.nbytes for pages in (batch.pages, original)]
        assert abs(saved[0] - saved[1]) < 0.002
        assert len(set(batch.keys)) == len(batch)
    assert len(seen) == 3 * 48


def test_masks_do_not_meet() -> None:
    both = np.concatenate([masks(1000, 0), masks(1000, 1)])
    assert len(np.unique(both)) == 2000
    assert not np.any(both & np.uint64(0xFF80FF80FF80FF80))


DOCUMENT = {
    "machine": {"processor": "a processor, 2 cores", "threads": "2", "kernel": "k", "memory": "1 GiB", "system": "a system"},
    "versions": {"pfimg": "1", "LMCache": "2"},
    "groups": {
        "pages of 64 KiB": {
            "title": "real pages of 64 KiB",
            "item_bytes": 65_536,
            "place": "tmpfs",
            "date": "2026-01-01",
            "rounds": 3,
            "missing": {"processfork": "processfork: not installed"},
            "seconds": {
                "store": {"pfimg": [32e-6, 34e-6, 33e-6], "LMCache": [22e-6, 22e-6, 22e-6]},
                "load": {"pfimg": [22e-6, 22e-6, 22e-6]},
                "hash": {"hash alone": [8e-6, 8e-6, 8e-6]},
            },
        }
    },
}


def test_the_document_is_written_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("setting", "ratios", "rates", "others")
    markers = "".join(f"before {name}\n<!-- {name} -->\nold\n<!-- end -->\nafter\n" for name in names)
    (tmp_path / "performance.md").write_text(markers)
    (tmp_path / "results.json").write_text(json.dumps(DOCUMENT))
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path / "results.json"), "--docs", str(tmp_path)])
    report.main()
    text = (tmp_path / "performance.md").read_text()
    assert text.count("<!-- end -->") == text.count("after") == 4
    assert "old" not in text
    assert "0.67 ×" in text
    assert "processfork: not installed" in text
    assert "not measured" in text  # the rows of other groups are named all the same
    report.main()
    assert (tmp_path / "performance.md").read_text() == text
    assert ET.parse(tmp_path / "plots" / "store.svg").getroot().tag.endswith("svg")


def test_a_missing_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="ratios"):
        report.between_markers("no markers", "ratios", "")


def test_a_plot_has_a_bar_for_each_value() -> None:
    drawing = ET.fromstring(plot.bars("a <title>", ["a", "b"], {"x": [1.0, None], "y": [0.5, 3.0]}, [1.5, None]))
    boxes = [box for box in drawing.iter("{http://www.w3.org/2000/svg}rect") if float(box.attrib["width"]) > 10]
    assert len(boxes) == 3
    heights = [float(box.attrib["height"]) for box in boxes]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
