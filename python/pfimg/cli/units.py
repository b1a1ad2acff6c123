"""How the command reads and prints sizes, durations and counts, and prints texts that others chose."""

import click

from pfimg.config import measure, parse_size

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """An option's value in bytes: `500000`, `10GB`, `512MiB`."""
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """An option's value in seconds: `90`, `30m`, `24h`, `7d`."""
    try:
        return measure(text, _SECONDS)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a time such as 90 (seconds), 30m, 24h or 7d") from None


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
