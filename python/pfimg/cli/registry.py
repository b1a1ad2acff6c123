"""Images in registries: push, pull, clone, copy, exists."""

from pathlib import Path

import click

import pfimg
from pfimg.types import PullReport

from .app import App, Command, pass_app
from .exits import Exit, Failure
from .ids import resolve
from .images import image_argument, restore

LAYERS = ("model", "cache", "world", "effects", "trace")

_KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ref = click.argument("ref")
_sign = click.option("--sign", type=_KEY_FILE, metavar="KEYFILE", help="Sign with this key.")
_codec = click.option(
    "--codec", type=click.Choice(["auto", "zstd", "store"]), help="Encode what is sent anew; without it, as stored."
)
_jobs = click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="At most so many requests at once.")
_trust = click.option(
    "--trust", type=_KEY_FILE, multiple=True, metavar="KEYFILE", help="Accept only images signed by one of these keys."
)


def _layers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    chosen = [name.strip() for name in value.split(",")]
    if unknown := [name for name in chosen if name not in LAYERS]:
        raise click.BadParameter(f"no layer is called {', '.join(map(repr, unknown))}; there are {', '.join(LAYERS)}")
    return chosen


@click.command(cls=Command)
@image_argument
@_ref
@_sign
@_codec
@_jobs
@pass_app
def push(app: App, image: str, ref: str, *, sign: Path | None, codec: str | None, jobs: int | None) -> None:
    """Send an image to a registry: what is not there yet.

    REF is file:///abs/dir or another registry's address.
    """
    store = app.store()
    id = resolve(store, image)
    with app.progress() as progress:
        report = pfimg.push(store, id, ref, sign=sign, codec=codec, jobs=jobs, progress=progress)
    app.emit(report, str(report))


@click.command(cls=Command)
@_ref
@_trust
@click.option("--layers", callback=_layers, metavar="NAMES", help=f"Only these layers, separated by commas: {', '.join(LAYERS)}.")
@pass_app
def pull(app: App, ref: str, trust: tuple[Path, ...], layers: list[str] | None) -> None:
    """Fetch an image from a registry: what is not here yet."""
    report = _pull(app, ref, trust, layers)
    app.emit(report, str(report))


@click.command(cls=Command)
@_ref
@click.argument("target", type=click.Path(path_type=Path))
@_trust
@pass_app
def clone(app: App, ref: str, target: Path, trust: tuple[Path, ...]) -> None:
    """Pull an image and check it out."""
    if target.exists():
        raise FileExistsError(17, "exists already", str(target))
    report = _pull(app, ref, trust, None)
    restore(app, app.store(), report.image, target)


def _pull(app: App, ref: str, trust: tuple[Path, ...], layers: list[str] | None) -> PullReport:
    store = app.store(create=True)
    with app.progress() as progress:
        return pfimg.pull(ref, store, trust=list(trust) or None, layers=layers, progress=progress)


@click.command(cls=Command)
@click.argument("source")
@click.argument("destination")
@_sign
@_trust
@pass_app
def copy(app: App, source: str, destination: str, sign: Path | None, trust: tuple[Path, ...]) -> None:
    """Copy an image from registry to registry."""
    with app.progress() as progress:
        report = pfimg.copy(source, destination, sign=sign, trust=list(trust) or None, progress=progress)
    app.emit(report, str(report))


@click.command(cls=Command)
@_ref
@pass_app
def exists(app: App, ref: str) -> None:
    """Ask whether a registry has an image: exit code 0 or 3."""
    found = pfimg.exists(ref)
    app.emit({"ref": ref, "exists": found}, "yes" if found else "no")
    if not found:
        raise Failure(Exit.NOT_FOUND)
