"""Times as images write them."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg import timestamps

FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(\d{3}|\d{6}|\d{9}))?Z")


@pytest.mark.parametrize(
    ("given_", "normal"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01t00:00:00z", "2026-01-01T00:00:00Z"),
        ("2026-01-01 00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01T00:00:00-00:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T01:00:00+02:00", "2025-12-31T23:00:00Z"),
        ("2026-01-01T01:00:00.5-02:30", "2026-01-01T03:30:00.500Z"),
        ("2026-01-01T01:00:00.000Z", "2026-01-01T01:00:00Z"),
        ("2026-01-01T01:00:00.123400Z", "2026-01-01T01:00:00.123400Z"),
        ("2026-01-01T01:00:00.0000001Z", "2026-01-01T01:00:00.000000100Z"),
        ("2026-01-01T01:00:00.1234567899Z", "2026-01-01T01:00:00.123456789Z"),
        ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:60.500Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ],
)
def test_normalised(given_: str, normal: str) -> None:
    assert timestamps.normalise(given_) == normal


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2026-01-01", "2026-01-01T00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z", "2026-01-01T24:00:00Z",
        "2026-02-30T00:00:00Z", "2026-01-01T00:00:61Z", "2026-01-01T00:00:00+0200", "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00,5Z", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n", "2026-1-1T00:00:00Z",
        "\N{ARABIC-INDIC DIGIT TWO}026-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    assert timestamps.normalise(text) is None


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_nanoseconds_are_exact_and_normal(nanoseconds: int) -> None:
    text = timestamps.from_ns(nanoseconds)
    assert (match := FORM.fullmatch(text))
    assert timestamps.normalise(text) == text
    seconds = datetime.fromisoformat(text[:19] + "+00:00") - datetime(1970, 1, 1, tzinfo=UTC)
    assert seconds // timedelta(seconds=1) * 10**9 + int((match[2] or "0").ljust(9, "0")) == nanoseconds
    assert not (match[2] or "1").endswith("000")
