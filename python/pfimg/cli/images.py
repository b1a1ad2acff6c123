"""Images in the store: snapshot, ls, show, checkout, diff, rm."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import pfimg

from .app import App, Command, pass_app
from .contents import Contents
from .draw import changes, picture
from .exits import Exit, Failure
from .ids import complete, resolve, short
from .lineage import Node, graph, order
from .npy import PagesFile
from .units import visible

image_argument = click.argument("image", shell_complete=complete)
_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--agent", metavar="KIND", required=True, help="What kind of agent this is, such as my-agent.")
@click.option("--agent-version", metavar="TEXT", default="", help="Its version.")
@click.option(
    "--parent",
    "parents",
    metavar="ID",
    multiple=True,
    shell_complete=complete,
    help="An image this one descends from; up to two.",
)
@click.option(
    "--messages", type=click.File("rb"), metavar="FILE", help='Chat messages, one {"role", "content"} a line; - is stdin.'
)
@click.option(
    "--effects",
    type=click.File("rb"),
    metavar="FILE",
    help="Tool calls for the effects ledger, one JSON object a line; - is stdin.",
)
@click.option(
    "--cache", type=_PATH, nargs=2, metavar="K V", help="KV pages: two .npy files of (pages, layers, tokens, heads, head_dim)."
)
@click.option("--env/--no-env", default=True, help="Capture this process's environment, secrets redacted. [default: --env]")
@click.option("--scrub-env", metavar="REGEX", multiple=True, help="Redact variables of these names too.")
@click.option("--ignore", metavar="PATTERN", multiple=True, help="Leave out what matches, as in .gitignore.")
@pass_app
def snapshot(
    app: App,
    *,
    directory: Path,
    agent: str,
    agent_version: str,
    parents: tuple[str, ...],
    messages: Iterable[bytes] | None,
    effects: Iterable[bytes] | None,
    cache: tuple[Path, Path] | None,
    env: bool,
    scrub_env: tuple[str, ...],
    ignore: tuple[str, ...],
) -> None:
    """Capture a directory, and KV pages if given, as an image.

    Prints the id of the image. What .pfignore (else .gitignore) in DIR names is left out, as are caches and build outputs.
    """
    store = app.store(create=True)
    with app.progress() as progress:
        image = pfimg.snapshot(
            store,
            agent=pfimg.AgentInfo(agent, agent_version),
            fs_root=directory,
            cache=_put_pages(store, *cache) if cache else None,
            env=dict(os.environ) if env else {},
            cwd=Path.cwd(),
            messages=_json_lines(messages, "--messages"),
            effects=_json_lines(effects, "--effects"),
            parents=[resolve(store, parent) for parent in parents],
            scrub_env=scrub_env,
            ignore=[*ignore, *_own_store(store, directory)],
            progress=progress,
        )
    app.emit({"image": image}, image)


def _own_store(store: pfimg.PfStore, directory: Path) -> list[str]:
    """Leaves out the store where it lies in the directory: it changes while it is captured, and would hold itself."""
    root, directory = store.root.resolve(), directory.resolve()
    if not root.is_relative_to(directory):
        return []
    return ["/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", root.relative_to(directory).as_posix())]


def _put_pages(store: pfimg.PfStore, k_path: Path, v_path: Path) -> pfimg.PageManifest:
    k, v = PagesFile.open(k_path), PagesFile.open(v_path)
    if (k.meta.shape, k.meta.dtype, len(k.rows)) != (v.meta.shape, v.meta.dtype, len(v.rows)):
        raise Failure(Exit.FAILED, f"{v_path} does not have the shape and type of {k_path}: K and V must be alike")
    return store.put_pages(k.meta, k.rows, v.rows)


def _json_lines(file: Iterable[bytes] | None, option: str) -> list[dict[str, Any]]:
    values = []
    for number, line in enumerate(file or (), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise Failure(Exit.FAILED, f"{option}, line {number}: {error}: write one JSON object a line") from error
        if not isinstance(value, dict):
            raise Failure(Exit.FAILED, f"{option}, line {number}: not a JSON object")
        values.append(value)
    return values


@click.command(cls=Command)
@click.argument("ref", required=False)
@click.option("-n", "--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N.")
@pass_app
def ls(app: App, ref: str | None, limit: int | None) -> None:
    """List the images and how they descend from one another.

    Newest first; * has its parent below it, o has none in this store. With REF: what a registry has there, as references.
    """
    if ref is not None:
        found = pfimg.list_images(ref)[:limit]
        app.emit(found, "\n".join(found) or f"no images at {ref}")
        return
    store = app.store()
    partial = set(store.partial_images())
    manifests = dict(_manifests(store))
    nodes = order({id: Node(id, manifest.created_at, manifest.parents) for id, manifest in manifests.items()})[:limit]
    document = [_listed(manifests[node.id], node.id in partial) for node in nodes]
    rows = [(column, node and _row(manifests[node.id], node.id in partial, manifests)) for column, node in graph(nodes)]
    width = max((len(column) for column, _ in rows), default=0)
    app.emit(
        document, "\n".join(f"{column:<{width}}  {text or ''}".rstrip() for column, text in rows) or f"no images in {store.root}"
    )


def _manifests(store: pfimg.PfStore) -> Iterable[tuple[str, pfimg.Manifest]]:
    yield from store.images()
    for id in store.partial_images():
        yield id, store.get_manifest(id)


def _row(manifest: pfimg.Manifest, partial: bool, known_here: dict[str, pfimg.Manifest]) -> str:
    absent = [short(parent) for parent in manifest.parents if parent not in known_here]
    return "  ".join(
        filter(
            None,
            [
                short(manifest.id),
                manifest.created_at[:19].replace("T", " "),
                visible(f"{manifest.agent.kind} {manifest.agent.version}".strip()),
                f"(parent {', '.join(absent)} not here)" if absent else "",
                "partial" if partial else "",
            ],
        )
    )


def _listed(manifest: pfimg.Manifest, partial: bool) -> dict[str, object]:
    agent = {"kind": manifest.agent.kind, "version": manifest.agent.version, "fingerprint": manifest.agent.fingerprint}
    return {
        "image": manifest.id,
        "created_at": manifest.created_at,
        "agent": agent,
        "parents": list(manifest.parents),
        "partial": partial,
    }


@click.command(cls=Command)
@image_argument
@pass_app
def show(app: App, image: str) -> None:
    """Draw an image: layers with sizes, sequences and pages, biggest files."""
    store = app.store()
    contents = Contents.read(store, resolve(store, image))
    if app.as_json:
        app.emit(contents.document(), "")
    else:
        app.emit(None, picture(contents))


@click.command(cls=Command)
@image_argument
@click.argument("target", type=_PATH)
@pass_app
def checkout(app: App, image: str, target: Path) -> None:
    """Write the directory of an image to TARGET, which must not exist."""
    store = app.store()
    restore(app, store, resolve(store, image), target)


def restore(app: App, store: pfimg.PfStore, image: str, target: Path) -> None:
    """Checks out and says so."""
    with app.progress() as progress:
        pfimg.checkout(store, image, target, progress=progress)
    app.emit({"image": image, "target": str(target)}, str(target))


@click.command(cls=Command)
@click.argument("a", shell_complete=complete)
@click.argument("b", shell_complete=complete)
@pass_app
def diff(app: App, a: str, b: str) -> None:
    """Show what B has that A has not: files, pages, sequences, layers."""
    store = app.store()
    difference = pfimg.diff(store, resolve(store, a), resolve(store, b))
    app.emit(difference, changes(difference))


@click.command(cls=Command)
@click.argument("images", metavar="IMAGE|REF...", nargs=-1, required=True, shell_complete=complete)
@pass_app
def rm(app: App, images: tuple[str, ...]) -> None:
    """Remove images, of the store or by REF of a registry. Their blobs stay until `pfimg gc`."""
    ids = {image: resolve(app.store(), image) for image in images if "://" not in image}
    for image in images:
        if image in ids:
            app.store().remove_image(ids[image])
        else:
            pfimg.remove_image(image)
    removed = [ids.get(image, image) for image in images]
    app.emit({"removed": removed}, "\n".join(removed))
