"""Upkeep of the store: verify, gc, stats."""

from dataclasses import asdict

import click

import pfimg
from pfimg import config

from .app import App, Command, pass_app
from .exits import Exit, Failure
from .units import duration, size


@click.command(cls=Command)
@click.option("--repair-from", metavar="REF", multiple=True, help="Fetch damaged and missing blobs from this registry.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where the last run was interrupted: read only what it had not reached, or changed since.",
)
@pass_app
def verify(app: App, repair_from: tuple[str, ...], *, resume: bool) -> None:
    """Read and hash every blob; exit code 4 if the store is damaged. Damaged blobs are moved to `quarantine/`."""
    store = app.store()
    with app.progress() as progress:
        report = store.verify(repair_from=list(repair_from) or None, resume=resume, progress=progress)
    app.emit({"ok": report.ok, **asdict(report)}, str(report))
    if not report.ok:
        raise Failure(Exit.INTEGRITY)


@click.command(cls=Command)
@click.argument("ref", required=False)
@click.option(
    "--grace",
    callback=duration,
    default=str(config.DEFAULT_GRACE_SECONDS),
    metavar="TIME",
    help="Keep what is younger than this. [default: 1d]",
)
@click.option(
    "--max-bytes", callback=size, metavar="SIZE", help="Evict the oldest of what no image needs until the store is no larger."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@pass_app
def gc(app: App, ref: str | None, *, grace: float, max_bytes: int | None, dry_run: bool) -> None:
    """Remove blobs that no image and no pin needs.

    With REF: from a directory or bucket that is a registry, what none of its images needs.
    """
    if ref is None:
        report = app.store().gc(grace_seconds=grace, max_bytes=max_bytes, dry_run=dry_run)
    elif max_bytes is not None:
        raise Failure(Exit.USAGE, "--max-bytes is for a store; a registry keeps what its images need and nothing else")
    else:
        report = pfimg.collect_garbage(ref, grace_seconds=grace, dry_run=dry_run)
    app.emit(report, str(report))


@click.command(cls=Command)
@pass_app
def stats(app: App) -> None:
    """Count blobs, images and bytes of the store."""
    report = app.store().stats()
    app.emit(report, str(report))
