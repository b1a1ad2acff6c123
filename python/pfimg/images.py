"""Images: an agent's pages, directory, environment, messages and effects under one id.

`snapshot` writes the layers, and last of all the manifest that makes them an image: when anything fails before, nothing is
visible, and `gc` removes what was written. `checkout` restores the directory. `diff` compares two images.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import fspath
from pathlib import Path
from typing import Final, TypeVar

from pfimg import effects as ledger
from pfimg import environment, timestamps
from pfimg._core import (
    AgentInfo,
    CacheLayer,
    EffectsLayer,
    FsTree,
    Manifest,
    ModelLayer,
    PageManifest,
    TraceLayer,
    WorldLayer,
)
from pfimg.errors import FormatError
from pfimg.store import PfStore
from pfimg.types import Changes, ImageDiff, ProgressCallback, StrPath, ticker

K = TypeVar("K")

# What the reference writes for an image without a cache, or without adapters; the same bytes, so that they are stored once.
_NO_CACHE: Final = (
    b'{"dtype":"bf16","head_dim":0,"layout":"paged-batchinvariant-v1","logical_seqs":[],'
    b'"n_heads":0,"n_layers":0,"page_size_tokens":16,"pages":[]}'
)
_NO_ADAPTERS: Final = b'{"diff":{"adapters":[],"kind":"lora"},"layout":"model.diff.v1"}'
_MAX_PARENTS: Final = 2
_IMAGE_ID: Final = re.compile(r"(?:sha256|blake3):[0-9a-f]{64}")


def snapshot(
    store: PfStore,
    *,
    agent: str | AgentInfo,
    fs_root: StrPath | None = None,
    fs_tree: FsTree | None = None,
    cache: PageManifest | None = None,
    env: Mapping[str, str] | None = None,
    cwd: StrPath | None = None,
    messages: Iterable[Mapping[str, str]] = (),
    effects: Iterable[Mapping[str, object] | ledger.Effect] = (),
    model_base: bytes | str | None = None,
    model_diff: bytes | str | None = None,
    parents: Sequence[str] = (),
    scrub_env: Iterable[str] = (),
    default_scrub_env: bool = True,
    ignore: Sequence[str] = (),
    ignore_files: bool = True,
    progress: ProgressCallback | None = None,
) -> str:
    """Makes an image.

    Args:
        store: Where to; it holds the pages of `cache` already.
        agent: Who it is an image of: a kind, such as `my-agent`, or a full AgentInfo.
        fs_root: The directory to capture; None for an empty one.
        fs_tree: A tree instead of a directory; its blobs are in the store already.
        cache: KV pages, as `store.put_pages` returned them.
        env: Environment variables to record; nothing is taken from the process's own. Values of names that look like secrets are
            left out.
        cwd: The working directory to record; `fs_root` when None.
        messages: The conversation: mappings with `role` and `content`, both str, and nothing else.
        effects: The agent's tool calls, as `pfimg.effects.build` takes them.
        model_base: What identifies the model: bytes to store, or the digest of a blob that is in the store; `base:<agent kind>`
            when None.
        model_diff: What was trained on top of it, likewise; no adapters when None.
        parents: Ids of the images it descends from: none, one, or two for a merge. They need not be in the store.
        scrub_env: Regular expressions for more names of variables to redact.
        default_scrub_env: Whether names that look like secrets are redacted.
        ignore: Lines in the syntax of `.gitignore`: what to leave out besides the defaults and the ignore file.
        ignore_files: Whether `.pfignore`, else `.gitignore`, at `fs_root` is obeyed.
        progress: Called with events of the phase `capture`.

    Returns:
        The image's id.

    Raises:
        BlobNotFound: A page of `cache`, a file of `fs_tree`, or a digest in `model_base` or `model_diff`, is not in the store.
        FormatError: A message, effect, pattern or parent is malformed; `.field` and `.index` say which.
        TypeError: A value is of the wrong type.
        StoreError: A file changed while it was read (`.path`), or has a name that an image cannot hold.
        OSError: A file cannot be read, or the disk is full.

    Example:
        >>> store = pfimg.PfStore.open("store")
        >>> image = pfimg.snapshot(store, agent="my-agent", messages=[{"role": "user", "content": "hi"}])
        >>> store.get_manifest(image).agent.kind
        'my-agent'
    """
    about = agent if isinstance(agent, AgentInfo) else AgentInfo(agent)
    if fs_root is not None and fs_tree is not None:
        raise TypeError("fs_root and fs_tree: an image has one directory")
    root = None if fs_root is None else Path(fs_root)
    where = fspath(cwd if cwd is not None else fs_root if fs_root is not None else "")
    # What is small and may be malformed comes before what is large: a wrong argument fails at once.
    lineage = _parents(parents)
    env_document = environment.build(env or {}, where, scrub_env=scrub_env, default_scrub_env=default_scrub_env)
    messages_document = _messages(messages)
    effects_document = ledger.build(effects)
    ignored = [*(_ignore_lines(root) if root and ignore_files else ()), *ignore]

    def blob(value: bytes | str | None, default: bytes) -> str:
        return value if isinstance(value, str) else store.put(default if value is None else value)

    with store.hold():
        if root is None:
            fs = store.put((fs_tree or FsTree()).to_json())
        else:
            fs = store.put_tree(root, ignore=ignored, tick=ticker(progress, "capture"))
        manifest = Manifest(
            agent=about,
            model=ModelLayer(base=blob(model_base, f"base:{about.kind}".encode()), diff=blob(model_diff, _NO_ADAPTERS)),
            cache=CacheLayer(store.put(_NO_CACHE if cache is None else cache.to_json())),
            world=WorldLayer(fs=fs, env=store.put(env_document), procs=store.put(_procs())),
            effects=EffectsLayer(store.put(effects_document)),
            trace=TraceLayer(store.put(messages_document)),
            created_at=timestamps.from_ns(time.time_ns()),
            parents=lineage,
        )
        return store.put_manifest(manifest)


def checkout(
    store: PfStore,
    image: str,
    target: StrPath,
    *,
    allow_absolute_symlinks: bool = False,
    progress: ProgressCallback | None = None,
) -> None:
    """Restores an image's directory.

    It is built beside the target and renamed into place, so that the target appears whole or not at all.

    Args:
        store: Where the image is.
        image: The image's id.
        target: The directory to create.
        allow_absolute_symlinks: Restore also links that are absolute or lead out of the target; else they are skipped with a
            warning.
        progress: Called with events of the phase `checkout`.

    Raises:
        BlobNotFound: The image, or a blob that it needs, is not in the store.
        IntegrityError: A blob is corrupt.
        FormatError: The image's tree is malformed, or holds a path that would lead out of the target.
        FileExistsError: The target exists.

    Example:
        >>> import pathlib
        >>> sandbox = pathlib.Path("sandbox")
        >>> sandbox.mkdir()
        >>> _ = (sandbox / "a.txt").write_text("hello")
        >>> store = pfimg.PfStore.open("store")
        >>> pfimg.checkout(store, pfimg.snapshot(store, agent="my-agent", fs_root=sandbox), "restored")
        >>> pathlib.Path("restored/a.txt").read_text()
        'hello'
    """
    with store.hold():
        tree = store.get_manifest(image).world.fs
        tick = ticker(progress, "checkout")
        store.restore_tree(tree, target, allow_absolute_symlinks=allow_absolute_symlinks, tick=tick)


def diff(store: PfStore, a: str, b: str) -> ImageDiff:
    """Compares two images by their digests; no page and no file is read.

    Args:
        store: Where both are.
        a: Id of the old image.
        b: Id of the new one.

    Returns:
        Files, pages and sequences that were added, removed or changed, and the names of all layers that differ.

    Raises:
        BlobNotFound: An image, its tree or its page manifest is not in the store.

    Example:
        >>> import pathlib
        >>> store = pfimg.PfStore.open("store")
        >>> pathlib.Path("work").mkdir()
        >>> first = pfimg.snapshot(store, agent="my-agent", fs_root="work")
        >>> pathlib.Path("work/new.txt").touch()
        >>> second = pfimg.snapshot(store, agent="my-agent", fs_root="work")
        >>> pfimg.diff(store, first, second).files.added
        ('new.txt',)
    """
    old, new = store.get_manifest(a), store.get_manifest(b)
    old_layers, new_layers = _layers(old), _layers(new)
    layers = tuple(name for name in old_layers if old_layers[name] != new_layers[name])
    files: Changes[str] = Changes()
    pages: Changes[int] = Changes()
    sequences: Changes[str] = Changes()
    if "world.fs" in layers:
        files = _changes(_files(store, old.world.fs), _files(store, new.world.fs), key=lambda path: path.split("/"))
    if "cache.manifest" in layers:
        (old_pages, old_seqs), (new_pages, new_seqs) = _pages(store, old.cache.manifest), _pages(store, new.cache.manifest)
        pages, sequences = _changes(old_pages, new_pages), _changes(old_seqs, new_seqs)
    return ImageDiff(a, b, files, pages, sequences, layers)


def _parents(parents: Sequence[str]) -> tuple[str, ...]:
    # Each letter of a str would be a parent.
    if isinstance(parents, str):
        raise TypeError("parents must be a sequence of image ids, not one str")
    if len(parents) > _MAX_PARENTS:
        raise FormatError(f"an image has at most {_MAX_PARENTS} parents, not {len(parents)}", field="parents")
    for index, parent in enumerate(parents):
        if not _IMAGE_ID.fullmatch(parent):
            raise FormatError(f"parents[{index}]: {parent!r} is not an image id", field="parents", index=index)
    return tuple(parents)


def _messages(messages: Iterable[Mapping[str, str]]) -> bytes:
    lines = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{index}] must be a mapping, not {type(message).__name__}")
        for name in ("role", "content"):
            if name not in message:
                raise FormatError(f"messages[{index}] has no {name!r}", field=name, index=index)
            if not isinstance(message[name], str):
                raise TypeError(f"messages[{index}]: {name} must be a str, not {type(message[name]).__name__}")
        if extra := sorted(message.keys() - {"role", "content"}):
            raise FormatError(
                f"messages[{index}]: {extra[0]!r} cannot be recorded: put it into the content", field=extra[0], index=index
            )
        line = json.dumps({"content": message["content"], "role": message["role"]}, ensure_ascii=False, separators=(",", ":"))
        try:
            lines.append(line.encode() + b"\n")
        except UnicodeEncodeError as error:
            raise FormatError(f"messages[{index}] is not valid Unicode", index=index) from error
    return b"".join(lines)


def _ignore_lines(root: Path) -> list[str]:
    for name in (".pfignore", ".gitignore"):
        try:
            return (root / name).read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise FormatError(f"{root / name} is not UTF-8", path=root / name, offset=error.start) from error
    return []


def _procs() -> bytes:
    note = "pfimg does not capture running processes"
    document = {"kind": "procs.unsupported.v1", "note": note, "unsupported_on": sys.platform}
    return json.dumps(document, separators=(",", ":")).encode()


def _layers(manifest: Manifest) -> dict[str, object]:
    agent, model, cache, world = manifest.agent, manifest.model, manifest.cache, manifest.world
    return {
        "agent": (agent.kind, agent.version, agent.fingerprint),
        "model.base": model.base,
        "model.diff": model.diff,
        "cache.manifest": (cache.layout, cache.manifest),
        "world.fs": world.fs,
        "world.env": world.env,
        "world.procs": world.procs,
        "effects.ledger": manifest.effects.ledger,
        "trace.messages": manifest.trace.messages,
    }


def _files(store: PfStore, digest: str) -> dict[str, object]:
    data = store.get(digest)
    # Without the kind it is an opaque blob, which the format allows: it has no files.
    if b'"fs.tree.v1"' not in data:
        return {}
    return {entry.path: (entry.kind, entry.mode, entry.blob, entry.link_target) for entry in FsTree.from_json(data).entries}


def _pages(store: PfStore, digest: str) -> tuple[dict[int, object], dict[str, object]]:
    data = store.get(digest)
    if b'"pages"' not in data:  # opaque, as above
        return {}, {}
    manifest = PageManifest.from_json(data)
    pages: dict[int, object] = {page.ix: (page.k, page.v) for page in manifest.pages}
    return pages, {sequence.id: (sequence.page_ixs, sequence.fill_in_last_page) for sequence in manifest.logical_seqs}


def _changes(old: Mapping[K, object], new: Mapping[K, object], key: Callable[[K], object] | None = None) -> Changes[K]:
    def in_order(names: Iterable[K]) -> tuple[K, ...]:
        return tuple(sorted(names, key=key))  # type: ignore[type-var, arg-type]

    both = old.keys() & new.keys()
    return Changes(
        added=in_order(new.keys() - both),
        removed=in_order(old.keys() - both),
        changed=in_order(n for n in both if old[n] != new[n]),
    )
