"""What is done to stores and registries while they are killed, cut off from power or damaged: small images, and calls on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

META = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")
PAGES = 6


def pages(salt: int) -> list[bytes]:
    """Pages of smooth floats, as planes pay for, that differ from one another."""
    return [bytes([salt, at]) + b"".join(bytes([n % 251, 0x3F]) for n in range(META.page_bytes // 2 - 1)) for at in range(PAGES)]


def write_source(root: Path) -> None:
    """A directory of files, some of them equal, one larger, and a link."""
    (root / "src" / "deep").mkdir(parents=True)
    for n in range(4):
        (root / "src" / f"{n}").write_bytes(f"file {n % 3}\n".encode() * 50)
    (root / "src" / "deep" / "noise").write_bytes(bytes(range(256)) * 300)
    (root / "src" / "link").symlink_to("0")


def write_image(root: Path, *, codec: str = "auto", durability: str = "none") -> str:
    """Snapshots the directory `src`, pages and messages into the store `store`."""
    store = pfimg.PfStore.open(root / "store", codec=codec, durability=durability)
    cache = store.put_pages(META, pages(1), pages(2))
    messages = [{"role": "user", "content": "hello"}]
    return pfimg.snapshot(store, agent="tester", fs_root=root / "src", cache=cache, messages=messages)


def the_image(store: pfimg.PfStore) -> str:
    """The only one."""
    [(image, _)] = store.images()
    return image


def contents(store: pfimg.PfStore, image: str) -> dict[str, bytes]:
    """All that an image reaches."""
    digests = store.reachable(store.get_manifest(image))
    return dict(zip(digests, store.get_many(digests), strict=True))


def files(root: Path) -> dict[str, bytes]:
    """Every file and link below a directory, but temporaries and the lock."""
    found = {}
    for path in root.rglob("*"):
        if ".tmp" not in path.name and path.name != "lock" and (path.is_symlink() or path.is_file()):
            found[str(path.relative_to(root))] = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    return found


def is_whole(store: pfimg.PfStore, *, complete: bool = True) -> None:
    """A store that shows nothing which is not whole, and whose leftovers are known for what they are."""
    report = store.verify()
    assert not report.foreign, report
    assert not complete or report.ok, report
    blobs = [path for path in (store.root / "blobs").rglob("*") if path.suffix in (".zst", ".fpl")]
    assert store.stats().blobs == len(blobs)
    for image, _ in store.images():
        if complete:
            contents(store, image)


def sweep(store: pfimg.PfStore) -> None:
    """Ages what a killed process left, and sees gc take it, and nothing else."""
    before = files(store.root)
    for path in store.root.rglob("*.tmp.*"):
        os.utime(path, (0, 0))
    store.gc(grace_seconds=10**6)
    assert list(store.root.rglob("*.tmp.*")) == []
    assert files(store.root) == before


def is_published(ref: str, image: str, expected: dict[str, bytes], scratch: Path) -> bool:
    """Whether a registry shows the image; what it shows must be whole.

    The unnamed image of a tree is two objects: between them it is refused, which counts as not shown.
    """
    if not pfimg.exists(ref):
        return False
    store = pfimg.PfStore.open(scratch, durability="none")
    try:
        got = pfimg.pull(ref, store)
        assert got.image == image
        assert contents(store, image) == expected
    except pfimg.SignatureError:
        return False
    finally:
        shutil.rmtree(scratch)
    return True


@dataclass(frozen=True)
class Scene:
    """A call, on a directory that was prepared for it.

    Attributes:
        prepare: Makes what the call needs.
        act: The call; made again it completes what an earlier one began.
        look: Looks at what is left of a call that ended anywhere, and fails where a promise is broken; told whether it returned.
        outcome: What the call is for: all that has to be equal in the end.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    look: Callable[[Path, bool], object]
    outcome: Callable[[Path], object]


BLOBS = [f"blob {n}".encode() * (1 + 40 * n) for n in range(12)]


def put(durability: str) -> Scene:
    """Twelve blobs."""

    def act(root: Path) -> None:
        pfimg.PfStore.open(root / "store", durability=durability).put_many(BLOBS)

    def look(root: Path, returned: bool) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        # Without durability, names may outlive what they are for in a power cut; what is read is right all the same.
        if durability != "none":
            is_whole(store)
        names = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in BLOBS]
        here = store.has_many(names)
        if returned and durability != "none":
            assert all(here)
        for name, blob, is_here in zip(names, BLOBS, here, strict=True):
            with (
                contextlib.nullcontext()
                if durability != "none"
                else contextlib.suppress(pfimg.BlobNotFound, pfimg.IntegrityError)
            ):
                assert not is_here or store.get(name) == blob

    def outcome(root: Path) -> object:
        return files(root / "store")

    return Scene(lambda _: None, act, look, outcome)


def snapshot(durability: str = "group", codec: str = "auto") -> Scene:
    """A directory, pages and messages."""

    def act(root: Path) -> None:
        write_image(root, codec=codec, durability=durability)

    def look(root: Path, returned: bool) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        is_whole(store)
        images = [image for image, _ in store.images()]
        assert images or not returned
        for image in images:
            pfimg.checkout(store, image, root / "checked")
            assert files(root / "checked") == files(root / "src")
            shutil.rmtree(root / "checked")

    def outcome(root: Path) -> object:
        # Each image has a time and a secret of its own; one that was visible before the kill is there beside its successor.
        images = (manifest for _, manifest in pfimg.PfStore.open(root / "store").images())
        return {(manifest.cache.manifest, manifest.world.fs, manifest.world.env) for manifest in images}

    return Scene(write_source, act, look, outcome)


def _prepared(root: Path) -> None:
    write_source(root)
    write_image(root)


def push(to: Callable[[Path], str], **options: str) -> Scene:
    """To the registry that `to` names."""

    def act(root: Path) -> str:
        store = pfimg.PfStore.open(root / "store", durability="none")
        return pfimg.push(store, the_image(store), to(root), **options).ref  # type: ignore[arg-type]

    def look(root: Path, returned: bool) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        image = the_image(store)
        shown = is_published(to(root), image, contents(store, image), root / "scratch")
        assert shown or not returned

    def outcome(root: Path) -> object:
        # Packs are named by what is in them, which depends on what an earlier push has left; what is pulled was looked at.
        return files(root / "registry") if "layout" not in options and (root / "registry").exists() else None

    return Scene(_prepared, act, look, outcome)


def pull(to: Callable[[Path], str], layers: list[str] | None = None, **options: str) -> Scene:
    """From the registry that `to` names."""

    def prepare(root: Path) -> None:
        _prepared(root)
        push(to, **options).act(root)

    def act(root: Path) -> None:
        pfimg.pull(to(root), pfimg.PfStore.open(root / "other"), layers=layers)

    def look(root: Path, returned: bool) -> None:
        here, other = (pfimg.PfStore.open(root / name, durability="none") for name in ("store", "other"))
        is_whole(other)
        images = [image for image, _ in other.images()]
        if layers is None:
            assert len(images) == 1 or (images == [] and not returned)
        else:
            assert images == []
            assert len(list((root / "other" / "partial").glob("*.json"))) == 1 or not returned
        for image in images:
            assert contents(other, image) == contents(here, image)

    return Scene(prepare, act, look, lambda root: files(root / "other"))


def collect() -> Scene:
    """Forgets one of two images that share much, and removes what only it needed."""

    def prepare(root: Path) -> None:
        _prepared(root)
        (root / "src" / "more").write_text("more")
        store = pfimg.PfStore.open(root / "store", durability="none")
        doomed = pfimg.snapshot(store, agent="doomed", fs_root=root / "src", cache=store.put_pages(META, pages(3), pages(4)))
        (root / "doomed").write_text(doomed)
        store.pin("kept", store.put(b"a pinned blob"))

    def act(root: Path) -> None:
        store = pfimg.PfStore.open(root / "store")
        with contextlib.suppress(pfimg.BlobNotFound):
            store.remove_image((root / "doomed").read_text())
        store.gc(grace_seconds=0)

    def look(root: Path, _returned: bool) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        is_whole(store)
        images = {image for image, _ in store.images()}
        assert len(images - {(root / "doomed").read_text()}) == 1
        assert store.get(store.pins()["kept"]) == b"a pinned blob"

    return Scene(prepare, act, look, lambda root: files(root / "store"))


def checkout() -> Scene:
    """Restores the directory; a target that is there already is what an earlier call made."""

    def act(root: Path) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        with contextlib.suppress(FileExistsError):
            pfimg.checkout(store, the_image(store), root / "out")

    def look(root: Path, returned: bool) -> None:
        if returned or (root / "out").exists():
            assert files(root / "out") == files(root / "src")
        is_whole(pfimg.PfStore.open(root / "store", durability="none"))

    return Scene(_prepared, act, look, lambda root: files(root / "out"))


def repair() -> Scene:
    """Verifies a store of which two blobs are damaged and one is gone, and fetches them again."""

    def prepare(root: Path) -> None:
        _prepared(root)
        push(lambda root: f"file://{root}/registry").act(root)
        store = pfimg.PfStore.open(root / "store", durability="none")
        damaged = sorted((root / "store" / "blobs").rglob("*.zst"))[:3]
        for path in damaged[:2]:
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        damaged[2].unlink()
        del store

    def act(root: Path) -> None:
        report = pfimg.PfStore.open(root / "store").verify(repair_from=f"file://{root}/registry")
        assert report.ok, report

    def look(root: Path, returned: bool) -> None:
        is_whole(pfimg.PfStore.open(root / "store", durability="none"), complete=returned)

    def outcome(root: Path) -> object:
        return {name: content for name, content in files(root / "store").items() if not name.startswith("quarantine/")}

    return Scene(prepare, act, look, outcome)


def numbered(below: str, separator: str = "/") -> Callable[[Path], str]:
    """A place below a reference to a service, another one for each number that a directory was given (`give_number`)."""
    return lambda root: f"{below}{separator}{(root / 'number').read_text()}"


def give_number(root: Path, number: int) -> None:
    """Tells a directory which of the repetitions it is for."""
    (root / "number").write_text(str(number))


def directory(root: Path) -> str:
    """The unnamed image."""
    return f"file://{root}/registry"


def named(root: Path) -> str:
    """An image with a name."""
    return f"file://{root}/registry#agent"


SCENES: dict[str, Scene] = {
    "put-none": put("none"),
    "put-group": put("group"),
    "put-each": put("each"),
    "snapshot": snapshot(),
    "snapshot-floats": snapshot(codec="float"),
    "push": push(directory),
    "push-named": push(named),
    "push-packed": push(directory, layout="packed"),
    "push-floats": push(directory, codec="float"),
    "pull": pull(directory),
    "pull-packed": pull(directory, layout="packed"),
    "pull-partial": pull(directory, ["world"]),
    "collect": collect(),
    "checkout": checkout(),
    "repair": repair(),
}
"""Those that need no server."""
