"""How fast the store is here: bench."""

from dataclasses import asdict
from pathlib import Path

import click

from .app import App, Command, pass_app
from .units import size as _size


@click.command(cls=Command)
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.option(
    "--size",
    callback=_size,
    default="512MiB",
    show_default=True,
    metavar="SIZE",
    help="Room to take up meanwhile; large pages want more.",
)
@click.option("--page-bytes", callback=_size, default="64KiB", show_default=True, metavar="SIZE", help="Length of a page.")
@pass_app
def bench(app: App, directory: Path | None, size: int, page_bytes: int) -> None:
    """Measure how near the store comes to what this machine and DIRECTORY allow.

    DIRECTORY is any on the file system in question; without one it is the store, or where the store would be made.
    """
    from pfimg.bench import LEAST_PAGE_BYTES, measure  # nothing else needs it

    if page_bytes < LEAST_PAGE_BYTES:
        raise click.BadParameter(f"a page has at least {LEAST_PAGE_BYTES} bytes", param_hint="--page-bytes")
    with app.progress() as progress:
        report = measure(directory or _existing(app.root()), size=size, page_bytes=page_bytes, progress=progress)
    document = asdict(report) | {"limits": report.limits, "shares": report.shares, "verdict": report.verdict}
    app.emit(document, str(report))


def _existing(directory: Path) -> Path:
    """The directory, or the nearest above it that exists."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
