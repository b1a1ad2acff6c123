"""Images in registries: push, pull, clone, copy, exists."""

from pathlib import Path
from typing import Any

import click

import pfimg
from pfimg.types import PullReport

from .app import App, Command, pass_app
from .exits import Exit, Failure
from .ids import resolve
from .images import image_argument, restore
from .keys import key_to_sign

LAYERS = ("model", "cache", "world", "effects", "trace")

_KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ref = click.argument("ref")
sign_option = click.option("--sign", type=_KEY_FILE, metavar="KEYFILE", help="Sign with this key: a private one, or a secret.")
_codec = click.option(
    "--codec",
    type=click.Choice(["auto", "zstd", "store", "float"]),
    help="Encode what is sent anew; without it, as stored. Only pfimg reads float; directories and buckets keep it, named.",
)
jobs_option = click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="At most so many requests at once.")
_layout = click.option(
    "--layout",
    type=click.Choice(["auto", "reference", "packed"]),
    default="auto",
    show_default=True,
    help="packed: many blobs in one object; reference: what the reference implementation reads; auto: as suits the registry.",
)
_expect = click.option(
    "--expect",
    metavar="ID|none",
    help="Replace this image only, or with none: push only if no image is there. Otherwise nothing is replaced.",
)
trust_option = click.option(
    "--trust",
    type=_KEY_FILE,
    multiple=True,
    metavar="KEYFILE",
    help="Accept only images signed by one of these keys. [default: $PFIMG_TRUST]",
)
_allow_older = click.option(
    "--allow-older", is_flag=True, help="Accept a signed image that is older than the one that was there the last time."
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
@sign_option
@_codec
@_layout
@_expect
@jobs_option
@pass_app
def push(app: App, /, image: str, ref: str, **options: Any) -> None:
    """Send an image to a registry: what is not there yet.

    REF is file:///abs/dir or another registry's address.
    """
    store = app.store()
    id = resolve(store, image)
    options["expect"] = _expected(store, options["expect"])
    options["sign"] = key_to_sign(options["sign"])
    with app.progress(of_registry=True) as progress:
        report = pfimg.push(store, id, ref, progress=progress, **options)
    app.emit(report, str(report))


def _expected(store: pfimg.PfStore, text: str | None) -> str | None:
    """What `--expect` names: the image need not be in this store if its id is whole."""
    return text if text in (None, "none") else resolve(store, text)


@click.command(cls=Command)
@_ref
@trust_option
@click.option("--layers", callback=_layers, metavar="NAMES", help=f"Only these layers, separated by commas: {', '.join(LAYERS)}.")
@_allow_older
@jobs_option
@pass_app
def pull(app: App, /, ref: str, **options: Any) -> None:
    """Fetch an image from a registry: what is not here yet."""
    report = _pull(app, ref, **options)
    app.emit(report, str(report))


@click.command(cls=Command)
@_ref
@click.argument("target", type=click.Path(path_type=Path))
@trust_option
@_allow_older
@jobs_option
@pass_app
def clone(app: App, /, ref: str, target: Path, **options: Any) -> None:
    """Pull an image and check it out."""
    if target.exists():
        raise FileExistsError(17, "exists already", str(target))
    report = _pull(app, ref, **options)
    restore(app, app.store(), report.image, target)


def _pull(app: App, ref: str, *, trust: tuple[Path, ...], **options: Any) -> PullReport:
    store = app.store(create=True)
    with app.progress(of_registry=True) as progress:
        return pfimg.pull(ref, store, trust=list(trust) or None, progress=progress, **options)


@click.command(cls=Command)
@click.argument("source")
@click.argument("destination")
@sign_option
@trust_option
@_codec
@_layout
@_expect
@jobs_option
@pass_app
def copy(app: App, /, source: str, destination: str, *, sign: Path | None, trust: tuple[Path, ...], **options: Any) -> None:
    """Copy an image from registry to registry, without a store."""
    key = key_to_sign(sign)
    with app.progress(of_registry=True) as progress:
        report = pfimg.copy(source, destination, sign=key, trust=list(trust) or None, progress=progress, **options)
    app.emit(report, str(report))


@click.command(cls=Command)
@_ref
@click.option(
    "--save", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Write both there, for other tools."
)
@pass_app
def signature(app: App, ref: str, save: Path | None) -> None:
    """Tell who says to have signed an image; nothing is checked.

    With --save, DIR gets manifest.json and its signature: the document, manifest.json.sig, and what cosign takes,
    manifest.json.b64.
    """
    found = pfimg.read_signature(ref)
    files = [str(path) for path in found.save(save)] if save else []
    document = {"ref": found.ref, "algorithm": found.algorithm, "signer": found.signer, "files": files}
    app.emit(document, "\n".join([f"{found.algorithm}{f' by {found.signer}' if found.signer else ''}", *files]))


@click.command(cls=Command)
@_ref
@pass_app
def exists(app: App, ref: str) -> None:
    """Ask whether a registry has an image: exit code 0 or 3."""
    found = pfimg.exists(ref)
    app.emit({"ref": ref, "exists": found}, "yes" if found else "no")
    if not found:
        raise Failure(Exit.NOT_FOUND)
