"""Points in time as images write them: RFC 3339, UTC, `Z`, and the shortest of 0, 3, 6 or 9 fraction digits that is exact.

Nanoseconds need integers and text; `datetime` knows neither them nor leap seconds, so it is used for arithmetic on minutes alone.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_RFC_3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):([0-5]\d|60)(?:\.(\d+))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))", re.ASCII
)


def from_ns(nanoseconds: int) -> str:
    """The time that many nanoseconds after 1970-01-01T00:00:00Z, as `time.time_ns` counts them.

    >>> pfimg.timestamps.from_ns(1_500_000_000)
    '1970-01-01T00:00:01.500Z'
    """
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + _shortest(f"{fraction:09}") + "Z"


def normalise(text: str) -> str | None:
    """The same time in the form above; digits below the nanosecond are dropped. None for what is not an RFC 3339 time.

    >>> pfimg.timestamps.normalise("2026-01-01 01:00:00.50+02:00")
    '2025-12-31T23:00:00.500Z'
    """
    if not (match := _RFC_3339.fullmatch(text)):
        return None
    day, minute, second, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{minute}")
        if sign:
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            moment += offset if sign == "-" else -offset
    except (ValueError, OverflowError):  # no such day, or out of the years 1 to 9999
        return None
    return f"{moment.isoformat(timespec='minutes')}:{second}{_shortest((fraction or '')[:9].ljust(9, '0'))}Z"


def _shortest(nine_digits: str) -> str:
    significant = len(nine_digits.rstrip("0"))
    digits = -(-significant // 3) * 3
    return f".{nine_digits[:digits]}" if digits else ""
