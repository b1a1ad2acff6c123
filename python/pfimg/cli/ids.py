"""Image ids as a person types them: whole, or a prefix that only one image of the store has."""

import re

import click
from click.shell_completion import CompletionItem

from pfimg import PfStore

from .app import App
from .exits import Exit, Failure

_SHORT = 12
_CANDIDATES = 10


def short(image: str) -> str:
    """The first digits of an id, enough to tell images apart."""
    return image.partition(":")[2][:_SHORT]


def resolve(store: PfStore, text: str) -> str:
    """The id that `text` stands for; Failure says why there is none."""
    algorithm, _, digits = text.lower().rpartition(":")
    if algorithm not in ("", "sha256", "blake3") or not re.fullmatch("[0-9a-f]{1,64}", digits):
        raise Failure(Exit.USAGE, f"{text!r} is not an image id: give `sha256:` and 64 hex digits, or the first few of them")
    if algorithm and len(digits) == 64:  # noqa: PLR2004 - a whole digest: an image without a marker can be named too
        return f"{algorithm}:{digits}"
    found = [image for image in known(store) if image.startswith(f"{algorithm or store.digest}:{digits}")]
    if not found:
        raise Failure(Exit.NOT_FOUND, f"no image in {store.root} begins with {text}: `pfimg ls` lists them")
    if len(found) > 1:
        names = ", ".join(found[:_CANDIDATES]) + (f" and {len(found) - _CANDIDATES:,} more" if len(found) > _CANDIDATES else "")
        raise Failure(Exit.USAGE, f"{text} is ambiguous, add digits: {names}")
    return found[0]


def known(store: PfStore) -> list[str]:
    """Ids of all images of the store, whole or partial."""
    return sorted({*store.markers(), *store.partial_images()})


def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion. Without the algorithm, because shells take `:` for the end of a word."""
    try:
        return [CompletionItem(short(id)) for id in known(context.ensure_object(App).store()) if short(id).startswith(incomplete)]
    except Exception:  # noqa: BLE001 - whatever is wrong with the store, this is not the moment to say it
        return []
