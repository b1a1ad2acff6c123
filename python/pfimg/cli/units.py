"""How the command reads and prints sizes, durations and counts, and prints texts that others chose."""

import re

import click

_SIZES = {"": 1, "b": 1, **{u: 1000**n for n, u in enumerate("kmgtp", 1)}}
_SIZES |= {f"{u}b": 1000**n for n, u in enumerate("kmgtp", 1)} | {f"{u}ib": 1024**n for n, u in enumerate("kmgtp", 1)}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """An option's value in bytes: `500000`, `10GB`, `512MiB`."""
    return None if text is None else int(_measure(text, _SIZES, "a size such as 500000, 10GB or 512MiB"))


def duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """An option's value in seconds: `90`, `30m`, `24h`, `7d`."""
    return _measure(text, _SECONDS, "a time such as 90 (seconds), 30m, 24h or 7d")


def _measure(text: str, units: dict[str, int], wanted: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise click.BadParameter(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2]]


def plural(count: int, noun: str) -> str:
    """`2` and `page` as `2 pages`; `1` and `directory` as `1 directory`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("ry") else f"{count:,} {noun}s"


def visible(text: str) -> str:
    """A text from an image, safe to print: escape sequences and line breaks in it would change what a terminal shows."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
