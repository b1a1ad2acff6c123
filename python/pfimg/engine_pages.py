"""The document by which an image says which engine's key stands for which of its files: `pages.json`.

`tree` writes it, and the tree that it is in; `read` reads one that nobody has checked. What it looks like is in docs/formats.md.

A key is written in hexadecimal, after a letter that tells text (`t`) from bytes (`b`), and so is the file with its page. What is
too long for a file's name has its digest there; the document has it whole.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from pfimg._core import FsTree, FsTreeEntry, Manifest, Store
from pfimg.errors import FormatError, LimitExceeded
from pfimg.page_index import CacheIdentity, engine_key

PAGES_BYTES: Final = 256 << 20
"""Largest document, in bytes: about four million keys of 32 bytes."""

_DOCUMENT: Final = "pages.json"
_KIND: Final = "engine.pages.v1"
_NAME_BYTES: Final = 255
_KEY: Final = re.compile(r"[tb](?:[0-9a-f]{2})*")
_IDENTITY: Final = {"model": str, "revision": str, "dtype": str, "geometry": list, "layout": str, "tp_rank": int, "tp_size": int}


class Part(NamedTuple):
    """A namespace of a cache.

    Attributes:
        path: The directory of its files in the image.
        directory: The name of the cache's directory; empty where it was exported alone.
        namespace: Its name.
        identity: What its pages are of.
        pages: Raw keys in order, with digests and bytes of their pages.
    """

    path: str
    directory: str
    namespace: str
    identity: CacheIdentity
    pages: list[tuple[bytes, str, int]]


def tree(store: Store, parts: Sequence[Part]) -> FsTree:
    """A tree with the pages of all parts and the document, which goes into the store. LimitExceeded for too many keys."""
    document = _to_json(parts)
    entries = []
    for part in parts:
        entries.append(FsTreeEntry(part.path, "0755", 0, "dir"))
        entries += [FsTreeEntry(_file(part, raw), "0644", size, "file", digest) for raw, digest, size in part.pages]
    entries.append(FsTreeEntry(_DOCUMENT, "0644", len(document), "file", store.put(document)))
    return FsTree(sorted(entries, key=lambda entry: entry.path.split("/")))


def read(manifest: Manifest, get: Callable[[str], bytes], name: str) -> list[Part]:
    """The parts of an image.

    Args:
        manifest: The image's.
        get: Reads a blob, verified.
        name: What errors call the image.

    Raises:
        FormatError: It has none, or its documents are malformed.
        LimitExceeded: The document is too large.
    """
    data = get(manifest.world.fs)
    if b'"fs.tree.v1"' not in data:  # an opaque blob, which the format allows
        raise _no_pages(name)
    files = {entry.path: entry for entry in FsTree.from_json(data).entries if entry.kind == "file"}
    about = files.get(_DOCUMENT)
    if about is None or about.blob is None:
        raise _no_pages(name)
    return [_part(one, files, f"{name}: parts[{number}]") for number, one in enumerate(_parts(get(about.blob), name))]


def _parts(document: bytes, name: str) -> list[Any]:
    if len(document) > PAGES_BYTES:
        raise LimitExceeded(f"{name}: {_DOCUMENT} is larger than {PAGES_BYTES:,} bytes", limit=PAGES_BYTES)
    try:
        told = json.loads(document, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: {_DOCUMENT} is malformed: {error}", field=_DOCUMENT) from error
    if not isinstance(told, dict) or told.get("kind") != _KIND:
        raise FormatError(f"{name}: {_DOCUMENT} is no {_KIND}", field="kind")
    parts: list[Any] = _checked(told, "parts", list, name)
    return parts


def _part(told: Any, files: dict[str, FsTreeEntry], where: str) -> Part:
    if not isinstance(told, dict):
        raise FormatError(f"{where} is no object", field="parts")
    path, directory, namespace = (_checked(told, field, str, where) for field in ("path", "directory", "namespace"))
    # It becomes the name of a directory.
    if directory.startswith(".") or re.search(r"[/\0]", directory) or len(directory.encode()) > _NAME_BYTES:
        raise FormatError(f"{where}: {directory!r} is no name for a cache's directory", field="directory")
    part = Part(path, directory, namespace, _identity(_checked(told, "identity", dict, where), where), [])
    for raw in _keys(_checked(told, "keys", list, where), where):
        file = files.get(_file(part, raw))
        if file is None or file.blob is None:
            raise FormatError(f"{where}: there is no file for the key {engine_key(raw)!r:.80}", field="keys")
        part.pages.append((raw, file.blob, file.size))
    return part


def _no_pages(name: str) -> FormatError:
    return FormatError(f"{name} has no pages of engines: `pfimg export` makes such images", field=_DOCUMENT)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _checked(told: dict[str, Any], field: str, kind: type, where: str) -> Any:
    value = told.get(field)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(f"{where}: {field} is no {kind.__name__}", field=field)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"{where}: {field} is no valid Unicode", field=field) from error
    return value


def _identity(told: dict[str, Any], where: str) -> CacheIdentity:
    # What one does not know may be what tells pages apart.
    if told.keys() != _IDENTITY.keys():
        raise FormatError(f"{where}: identity has other fields than {', '.join(_IDENTITY)}", field="identity")
    values = {field: _checked(told, field, kind, where) for field, kind in _IDENTITY.items()}
    if not all(type(number) is int for number in values["geometry"]):
        raise FormatError(f"{where}: geometry is no list of numbers", field="geometry")
    return CacheIdentity(**values | {"geometry": tuple(values["geometry"])})


def _keys(texts: list[Any], where: str) -> list[bytes]:
    found = []
    for text in texts:
        if not isinstance(text, str) or not _KEY.fullmatch(text):
            raise FormatError(f"{where}: {text!r:.80} is no key", field="keys")
        found.append(text[:1].encode() + bytes.fromhex(text[1:]))
        try:
            engine_key(found[-1])
        except UnicodeDecodeError as error:
            raise FormatError(f"{where}: {text:.80} is no key: its text is no UTF-8", field="keys") from error
    if len(set(found)) != len(found):
        raise FormatError(f"{where}: a key is there twice", field="keys")
    return found


def _to_json(parts: Sequence[Part]) -> bytes:
    told = [
        part._asdict() | {"identity": asdict(part.identity), "keys": [_text(raw) for raw, _, _ in part.pages]} for part in parts
    ]
    for each in told:
        del each["pages"]
    document = json.dumps({"kind": _KIND, "parts": told}, ensure_ascii=False, separators=(",", ":")).encode()
    if len(document) > PAGES_BYTES:
        raise LimitExceeded(f"the keys take {len(document):,} bytes, where {PAGES_BYTES:,} are the most", limit=PAGES_BYTES)
    return document


def _file(part: Part, raw: bytes) -> str:
    """Where the page of a key lies in the image; a key that is too long for a name has its digest there."""
    name = _text(raw)
    return f"{part.path}/{name if len(name) <= _NAME_BYTES else 'x' + hashlib.sha256(raw).hexdigest()}"


def _text(raw: bytes) -> str:
    """A key in hexadecimal, after a letter that tells text from bytes."""
    return chr(raw[0]) + raw[1:].hex()
