"""What is done to stores and registries while they are killed, cut off from power or damaged: small images, and calls on them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pfimg
from pfimg.keys import SigningKey

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


def push(to: Callable[[Path], str], seen: Callable[[Path], str] | None = None, /, **options: str) -> Scene:
    """To the registry that `to` names, where others see it as `seen` names it."""
    seen = seen or to

    def act(root: Path) -> str:
        store = pfimg.PfStore.open(root / "store", durability="none")
        return pfimg.push(store, the_image(store), to(root), **options).ref  # type: ignore[arg-type]

    def look(root: Path, returned: bool) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        image = the_image(store)
        shown = is_published(seen(root), image, contents(store, image), root / "scratch")
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


def at_a_node(root: Path) -> None:
    """Pushes the image to an IPFS node, and notes where it is seen there, which its content tells."""
    _prepared(root)
    (root / "address").write_text(str(push(lambda _: "ipfs://").act(root)))


def address(root: Path) -> str:
    """Where the image is seen at the node."""
    return (root / "address").read_text()


def pull_with_trust() -> Scene:
    """An image by a key that is trusted: the store remembers what it has seen, before others can see it."""
    ref = directory

    def prepare(root: Path) -> None:
        _prepared(root)
        SigningKey.generate().save(root / "key")
        store = pfimg.PfStore.open(root / "store", durability="none")
        pfimg.push(store, the_image(store), ref(root), sign=root / "key")

    def act(root: Path) -> None:
        pfimg.pull(ref(root), pfimg.PfStore.open(root / "other"), trust=root / "key.pub")

    def look(root: Path, returned: bool) -> None:
        other = pfimg.PfStore.open(root / "other", durability="none")
        is_whole(other)
        image = the_image(pfimg.PfStore.open(root / "store", durability="none"))
        images = [image for image, _ in other.images()]
        remembered = [json.loads(path.read_bytes())["image"] for path in (root / "other" / "seen").glob("*.json")]
        assert images == [image] or (images == [] and not returned)
        assert remembered == [image] or (remembered == images == [])

    return Scene(prepare, act, look, lambda root: files(root / "other"))


def _two(root: Path) -> tuple[str, str]:
    """A store of two images that share much."""
    _prepared(root)
    store = pfimg.PfStore.open(root / "store", durability="none")
    first = the_image(store)
    (root / "src" / "more").write_text("more")
    second = pfimg.snapshot(store, agent="second", fs_root=root / "src", cache=store.put_pages(META, pages(3), pages(4)))
    (root / "ids").write_text(f"{first} {second}")
    return first, second


def _ids(root: Path) -> list[str]:
    return (root / "ids").read_text().split()


def _aside(root: Path) -> None:
    """What a killed process leaves of a directory for the moment goes with the test."""
    tempfile.tempdir = str(root.parent)


def is_shown(root: Path, ref: str, image: str) -> bool:
    """Whether a registry shows that image of the store; what it shows must be whole."""
    store = pfimg.PfStore.open(root / "store", durability="none")
    return is_published(ref, image, contents(store, image), root / "scratch")


def replace() -> Scene:
    """Gives a name another image, where the one that is expected is there."""

    def prepare(root: Path) -> None:
        first, _ = _two(root)
        pfimg.push(pfimg.PfStore.open(root / "store", durability="none"), first, named(root))

    def act(root: Path) -> None:
        first, second = _ids(root)
        try:
            pfimg.push(pfimg.PfStore.open(root / "store", durability="none"), second, named(root), expect=first)
        except pfimg.Conflict as error:
            assert error.image == second  # noqa: PT017 - an earlier call has done it

    def look(root: Path, returned: bool) -> None:
        first, second = _ids(root)
        there = pfimg.pull(named(root), pfimg.PfStore.open(root / "scratch", durability="none")).image
        shutil.rmtree(root / "scratch")
        assert there == second or (there == first and not returned)
        assert is_shown(root, named(root), there)

    return Scene(prepare, act, look, lambda root: files(root / "registry"))


def remove(to: Callable[[Path], str]) -> Scene:
    """Takes one of two images of a registry away."""

    def kept(root: Path) -> str:
        return f"file://{root}/registry#kept"

    def prepare(root: Path) -> None:
        first, second = _two(root)
        store = pfimg.PfStore.open(root / "store", durability="none")
        pfimg.push(store, first, kept(root))
        pfimg.push(store, second, to(root))

    def act(root: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            pfimg.remove_image(to(root))

    def look(root: Path, returned: bool) -> None:
        first, second = _ids(root)
        assert is_shown(root, kept(root), first)
        assert not is_shown(root, to(root), second) or not returned

    return Scene(prepare, act, look, lambda root: pfimg.list_images(to(root)))


def collect_registry() -> Scene:
    """Removes from a registry what only an image needed whose name is gone, of late: nobody has waited for the disk to know."""

    def refs(root: Path) -> tuple[str, str]:
        return directory(root), f"file://{root}/registry#gone"

    def prepare(root: Path) -> None:
        store = pfimg.PfStore.open(root / "store", durability="none")
        for image, ref in zip(_two(root), refs(root), strict=True):
            pfimg.push(store, image, ref)

    def act(root: Path) -> None:
        _aside(root)
        # As far as a process came that was killed while it took the image away.
        (root / "registry" / "pfimg" / "images" / "gone.json").unlink(missing_ok=True)
        pfimg.collect_garbage(directory(root), grace_seconds=0)

    def look(root: Path, returned: bool) -> None:
        (kept, gone), (first, second) = refs(root), _ids(root)
        assert is_shown(root, kept, first)
        assert not is_shown(root, gone, second) or not returned

    return Scene(prepare, act, look, lambda root: files(root / "registry"))


def copy() -> Scene:
    """From one directory to another, which has some of it."""

    def to(root: Path) -> str:
        return f"file://{root}/copied#agent"

    def prepare(root: Path) -> None:
        first, second = _two(root)
        store = pfimg.PfStore.open(root / "store", durability="none")
        pfimg.push(store, second, named(root))
        pfimg.push(store, first, to(root).removesuffix("#agent"))

    def act(root: Path) -> None:
        _aside(root)
        pfimg.copy(named(root), to(root))

    def look(root: Path, returned: bool) -> None:
        first, second = _ids(root)
        assert is_shown(root, to(root).removesuffix("#agent"), first)
        assert is_shown(root, to(root), second) or not returned

    return Scene(prepare, act, look, lambda root: files(root / "copied"))


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
    "pull-with-trust": pull_with_trust(),
    "replace": replace(),
    "remove": remove(directory),
    "remove-named": remove(named),
    "copy": copy(),
    "collect": collect(),
    "collect-registry": collect_registry(),
    "checkout": checkout(),
    "repair": repair(),
}
"""Those that need no server."""
