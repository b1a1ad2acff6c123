"""Reports: frozen, and printed as a short table."""

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg import types

REPORTS: dict[type[Any], tuple[Any, list[str]]] = {
    types.VerifyReport: (
        types.VerifyReport(
            checked=1200,
            bytes=1_234_567,
            corrupt=(types.Finding("sha256:aa", "/s/aa", ("sha256:i1", "sha256:i2", "sha256:i3")),),
            foreign=(types.Finding(None, "/s/junk"),),
            repaired=("sha256:bb",),
        ),
        [
            "DAMAGED",
            "  checked   1,200 blobs, 1.2 MB",
            "  corrupt   sha256:aa (needed by sha256:i1, sha256:i2 and 1 more)",
            "  foreign   1",
            "  repaired  1",
        ],
    ),
    types.GcReport: (types.GcReport(3, 999_950, 4), ["freed", "  freed  3 blobs, 1.0 MB", "  kept   4 blobs"]),
    types.StoreStats: (
        types.StoreStats(2, 1, 790, 1000, {"hits": 12_345}),
        ["store", "  blobs    2", "  images   1", "  on disk  790 B, 79.0% of 1.0 kB", "  hits     12,345"],
    ),
    types.PushReport: (
        types.PushReport("file:///r", 3, 1, 2_000_000, 2.0),
        ["pushed file:///r", "  sent     3 blobs, 2.0 MB", "  skipped  1 blobs", "  took     2.00 s (1.0 MB/s)"],
    ),
    types.PullReport: (
        types.PullReport("sha256:ii", 0, 9, 0, "self-signed", 0.0),
        [
            "pulled sha256:ii",
            "  fetched    0 blobs, 0 B",
            "  skipped    9 blobs",
            "  took       0.00 s",
            "  signature  self-signed",
        ],
    ),
    types.ImageDiff: (
        types.ImageDiff(
            "sha256:a",
            "sha256:b",
            types.Changes(added=("x", "y"), changed=("z",)),
            types.Changes(changed=tuple(range(7))),
            types.Changes(),
            ("cache.manifest", "world.fs", "world.env"),
        ),
        [
            "sha256:a → sha256:b",
            "  files         2 added: x, y; 1 changed: z",
            "  pages         7 changed: 0, 1, 2, 3, 4 and 2 more",
            "  sequences     none",
            "  other layers  world.env",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPORTS)
def test_prints_as_a_table(kind: type[Any]) -> None:
    report, lines = REPORTS[kind]
    assert str(report).splitlines() == lines


@pytest.mark.parametrize("kind", REPORTS)
def test_is_frozen_equal_by_value_and_picklable(kind: type[Any]) -> None:
    report, _ = REPORTS[kind]
    field = dataclasses.fields(report)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(report, field, None)
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_dry_run_says_so() -> None:
    assert str(types.GcReport(1, 1, 1, dry_run=True)).startswith("would be freed")


def test_a_store_is_intact_when_nothing_is_corrupt_or_missing() -> None:
    finding = (types.Finding("sha256:aa", None),)
    assert types.VerifyReport(1, 1, unreachable=finding, foreign=finding).ok
    assert not types.VerifyReport(1, 1, corrupt=finding).ok
    assert not types.VerifyReport(1, 1, missing=finding).ok


def test_a_difference_is_true_when_there_is_one() -> None:
    assert not types.ImageDiff("a", "a", types.Changes(), types.Changes(), types.Changes(), ())
    assert types.ImageDiff("a", "b", types.Changes(), types.Changes(), types.Changes(), ("agent",))
    assert not types.Changes()
    assert types.Changes(removed=("x",))


def test_a_ticker_makes_events() -> None:
    seen: list[types.Progress] = []
    tick = types.ticker(seen.append, "verify")
    assert tick is not None
    tick(3, 10, 4096)
    assert seen == [types.Progress("verify", 3, 10, 4096, None)]
    assert types.ticker(None, "verify") is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1.5e12, "1.5 TB"),
        (9e18, "9,000,000.0 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert types.human_size(count) == text


@given(st.integers(0, 10**15 - 10**12))
def test_sizes_are_short_and_within_their_rounding(count: int) -> None:
    number, unit = types.human_size(count).split()
    scale = 1000 ** ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert len(number) <= 5
    assert abs(float(number) * scale - count) <= scale * 0.0501
