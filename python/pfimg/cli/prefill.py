"""Pages of engines: export, warm."""

import dataclasses
from pathlib import Path

import click

import pfimg

from .app import App, Command, note, pass_app
from .ids import resolve
from .keys import key_to_sign
from .registry import jobs_option, sign_option, trust_option

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


def _prefix(_context: click.Context, _parameter: click.Parameter, text: str | None) -> bytes | str | None:
    if text is None or not text.startswith("0x"):
        return text
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise click.BadParameter(f"{text!r} is not 0x and an even number of hex digits") from None


@click.command(cls=Command)
@click.option(
    "--cache",
    "caches",
    type=_DIRECTORY,
    metavar="DIR",
    multiple=True,
    required=True,
    help="A cache's directory, or one that holds those of a tensor-parallel group; may be given several times.",
)
@click.option("--namespace", "namespaces", metavar="NAME", multiple=True, help="Only this namespace; may be given several times.")
@click.option("--prefix", callback=_prefix, metavar="P", help="Only keys that begin with this text, or as 0x… with these bytes.")
@click.option("--agent", metavar="KIND", default="pfimg-cache", show_default=True, help="What kind of agent the image is of.")
@click.option("--push", "ref", metavar="REF", help="Push the image there.")
@sign_option
@pass_app
def export(
    app: App,
    *,
    caches: tuple[Path, ...],
    namespaces: tuple[str, ...],
    prefix: bytes | str | None,
    agent: str,
    ref: str | None,
    sign: Path | None,
) -> None:
    """Make an image of the pages in an engine's cache, with their keys.

    Prints the id of the image. The engine may be running.
    """
    store, key = app.store(create=True), key_to_sign(sign)
    with app.progress() as progress:
        report = pfimg.export_pages(caches, store, namespaces=namespaces or None, prefix=prefix, agent=agent, progress=progress)
    document = dataclasses.asdict(report)
    if report.missing:
        note(f"pfimg: warning: {report.missing:,} keys are left out, whose pages the cache has lost")
    if ref is not None:
        with app.progress(of_registry=True) as progress:
            document["pushed"] = dataclasses.asdict(pfimg.push(store, report.image, ref, sign=key, progress=progress))
    app.emit(document, report.image)


@click.command(cls=Command)
@click.argument("source", metavar="REF|IMAGE")
@click.option("--cache", type=_DIRECTORY, metavar="DIR", required=True, help="The directory of a cache that is not in use.")
@click.option("--namespace", metavar="NAME", help="Only this namespace.")
@click.option("--lazy", is_flag=True, help="Only the keys; the pages come from the engine's registry when they are asked for.")
@trust_option
@jobs_option
@pass_app
def warm(
    app: App, *, source: str, cache: Path, namespace: str | None, lazy: bool, trust: tuple[Path, ...], jobs: int | None
) -> None:
    """Fill an engine's cache with the pages of such an image.

    It takes those of the same model, rank and layout; a new DIR gets what was exported. REF is an image in a registry, IMAGE one
    of the store.
    """
    store = None if "://" in source else app.store()
    image = source if store is None else resolve(store, source)
    with app.progress(of_registry=True) as progress:
        report = pfimg.warm(
            cache, image, store=store, namespace=namespace, lazy=lazy, trust=list(trust) or None, jobs=jobs, progress=progress
        )
    app.emit(report, str(report))
