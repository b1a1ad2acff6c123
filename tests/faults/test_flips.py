"""Damage: of each kind of file every class of byte is flipped; it is found or changes nothing, and is never returned.

Beginning and end of a file, where headers, lengths and names are, are tried byte by byte, what lies between in steps;
`PFIMG_FAULT_FLIPS=all` tries every byte.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.faults import scenes

import pfimg
from pfimg.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL = os.environ.get("PFIMG_FAULT_FLIPS") == "all"
ENDS, BETWEEN = 24, 24


def flips(content: bytes, ends: int = ENDS, between: int = BETWEEN) -> Iterator[tuple[int, bytes]]:
    """Places, and the content with the byte there flipped: a bit of it, or all of them."""
    size = len(content)
    step = 1 if ALL else max(1, size // between)
    for at in sorted({*range(min(ends, size)), *range(0, size, step), *range(max(0, size - ends), size)}):
        mask = 0xFF if at % 3 == 0 else 1 << at % 8
        yield at, content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


@pytest.fixture
def expected(scratch: Path) -> dict[str, bytes]:
    """All that the image of `scratch` holds; its store has every form of frame."""
    scenes.write_source(scratch)
    image = scenes.write_image(scratch, codec="float")
    return scenes.contents(pfimg.PfStore.open(scratch / "store"), image)


def kinds(store: Path) -> dict[str, Path]:
    """A file of each kind."""
    frames = {path: path.read_bytes() for path in (store / "blobs").rglob("*") if path.is_file()}
    sizes = {path: len(frame) for path, frame in frames.items() if path.suffix == ".zst"}
    [marker] = (store / "images").iterdir()
    return {
        "small frame": min(sizes, key=lambda path: sizes[path]),
        "large frame": max(sizes, key=lambda path: sizes[path]),
        "float frame": next(path for path in frames if path.suffix == ".fpl"),
        "manifest": next(path for path in frames if path.stem == marker.stem),
        "marker": marker,
        "description": store / "pfimg.json",
    }


@pytest.mark.parametrize("kind", ["small frame", "large frame", "float frame", "manifest", "marker", "description"])
def test_a_flipped_byte_of_a_store_is_found(
    kind: str, scratch: Path, expected: dict[str, bytes], record: Callable[..., None]
) -> None:
    root = scratch / "store"
    path = kinds(root)[kind]
    content = path.read_bytes()
    found = harmless = 0
    for at, damaged in flips(content):
        path.write_bytes(damaged)
        try:
            store = pfimg.PfStore.open(root, durability="none")
            for digest, blob in expected.items():
                try:
                    assert store.get(digest) == blob, f"byte {at} of the {kind}"
                except (pfimg.IntegrityError, pfimg.BlobNotFound):
                    assert path.stem in digest, f"byte {at} of the {kind}"
            shutil.rmtree(root / "quarantine", ignore_errors=True)
            path.write_bytes(damaged)
            report = store.verify()
        except pfimg.FormatError:
            assert kind == "description", f"byte {at}"
            found += 1
        else:
            if report.ok:
                assert scenes.contents(store, scenes.the_image(store)) == expected, f"byte {at} of the {kind}"
                harmless += 1
            else:
                assert any(path.stem in (finding.digest or "") for finding in report.corrupt) or kind == "description"
                found += 1
        if kind != "description":
            # The next put of the same bytes heals; a marker is healed from the manifest.
            healer = pfimg.PfStore.open(root, durability="none")
            healer.put_many(list(expected.values()))
            if kind == "marker":
                healer.verify(repair_from=[])
        path.write_bytes(content)
        shutil.rmtree(root / "quarantine", ignore_errors=True)
        assert pfimg.PfStore.open(root).verify().ok
    record(found=found, harmless=harmless)
    assert found > harmless


def push_everything(root: Path) -> dict[str, tuple[str, list[Path]]]:
    """Pushes the image in every layout of a directory: what to pull, and a file of each kind that the pull needs."""
    store = pfimg.PfStore.open(root / "store")
    image = scenes.the_image(store)
    options: dict[str, dict[str, str]] = {"plain": {}, "named": {}, "packed": {"layout": "packed"}, "floats": {"codec": "float"}}
    pushed = {}
    for name, chosen in options.items():
        tree = root / name
        ref = pfimg.push(store, image, f"file://{tree}{'#agent' if name == 'named' else ''}", **chosen).ref  # type: ignore[arg-type]
        wanted = [tree / "manifest.json", tree / "manifest.json.sig", tree / "pfimg.json", *tree.glob("pfimg/images/*.json")]
        wanted += [*tree.glob("packs/*"), *sorted(tree.glob("blobs/*/*/*.zst"))[:2], *sorted(tree.glob("blobs/*/*/*.fpl"))[:1]]
        pushed[name] = ref, [path for path in wanted if path.exists()]
    return pushed


@pytest.mark.parametrize("layout", ["plain", "named", "packed", "floats"])
def test_a_flipped_byte_of_a_registry_is_found(
    layout: str, scratch: Path, expected: dict[str, bytes], record: Callable[..., None]
) -> None:
    ref, paths = push_everything(scratch)[layout]
    image = scenes.the_image(pfimg.PfStore.open(scratch / "store"))
    found = harmless = 0
    for path in paths:
        content = path.read_bytes()
        # A manifest and a signature that do not belong together are read again, in the hope of a writer between the two.
        for at, damaged in flips(content, *((4, 6) if path.parent == scratch / layout else (8, 12))):
            path.write_bytes(damaged)
            target = scratch / "target"
            store = pfimg.PfStore.open(target, durability="none", codec="float")
            try:
                got = pfimg.pull(ref, store)
            except (pfimg.PfimgError, FileNotFoundError):
                assert list(store.images()) == [], f"byte {at} of {path}"
                assert not store.verify().corrupt, f"byte {at} of {path}"
                found += 1
            else:
                assert got.image == image, f"byte {at} of {path}"
                assert scenes.contents(store, image) == expected, f"byte {at} of {path}"
                harmless += 1
            shutil.rmtree(target)
        path.write_bytes(content)
    record(files=len(paths), found=found, harmless=harmless)
    assert found > harmless


def test_a_flipped_byte_of_a_pin_is_found(scratch: Path, record: Callable[..., None]) -> None:
    store = pfimg.PfStore.open(scratch / "store", durability="none")
    digest = store.put(b"of no image")
    store.pin("kept", digest)
    [path] = (store.root / "pins").iterdir()
    content = path.read_bytes()
    found = harmless = 0
    for at, damaged in flips(content):
        path.write_bytes(damaged)
        report = store.verify()
        if report.ok:
            assert store.pins() == {"kept": digest}, f"byte {at}"
            harmless += 1
        else:
            found += 1
        # What the pin was for may be released now, but not while nobody can tell what it is for.
        with suppress(pfimg.FormatError, OSError):
            store.pins()
            continue
        with pytest.raises((pfimg.PfimgError, OSError)):
            store.gc(grace_seconds=0, dry_run=True)
    path.write_bytes(content)
    record(found=found, harmless=harmless)
    assert found > harmless


def test_a_flipped_byte_of_what_was_seen_lets_nothing_older_pass(scratch: Path, record: Callable[..., None]) -> None:
    key, ref = SigningKey.generate(), f"file://{scratch}/registry"
    store, other = (pfimg.PfStore.open(scratch / name, durability="none") for name in ("store", "other"))
    older, newer = (pfimg.snapshot(store, agent=name) for name in ("older", "newer"))
    pfimg.push(store, newer, ref, sign=key)
    pfimg.pull(ref, other, trust=key.public_key)
    pfimg.push(store, older, ref, sign=key)
    [path] = (other.root / "seen").iterdir()
    content = path.read_bytes()
    found = refused = 0
    for at, damaged in flips(content, ends=len(content)):
        path.write_bytes(damaged)
        with pytest.raises((pfimg.FormatError, pfimg.SignatureError)) as caught:
            pfimg.pull(ref, other, trust=key.public_key)
        if isinstance(caught.value, pfimg.FormatError):
            assert caught.value.path == str(path), f"byte {at}"
            found += 1
        else:
            assert caught.value.code == "older", f"byte {at}"
            refused += 1
    path.write_bytes(content)
    record(found=found, refused=refused)
    assert found > 0
    assert [image for image, _ in other.images()] == [newer]


def test_damage_is_told_by_whatever_names_it(scratch: Path) -> None:
    """All that a walk reaches and that can be damaged has a use that the report tells."""
    store = pfimg.PfStore.open(scratch / "store", durability="none")
    dump, weights, settings = (store.put(word * 100) for word in (b"dump", b"weights", b"settings"))
    procs = {"kind": "procs.criu.v1", "criu_dump": dump, "pids": [1]}
    adapters = [{"scale": 1.0}, {"files": [{"weights": weights}, settings]}, {"again": weights}]
    diff = {"diff": {"adapters": adapters, "kind": "lora"}, "layout": "model.diff.v1"}
    plain = store.get_manifest(pfimg.snapshot(store, agent="tester"))
    made = pfimg.Manifest(
        agent=plain.agent,
        model=pfimg.ModelLayer(plain.model.base, store.put(json.dumps(diff).encode())),
        cache=plain.cache,
        world=pfimg.WorldLayer(plain.world.fs, plain.world.env, store.put(json.dumps(procs).encode())),
        effects=plain.effects,
        trace=plain.trace,
        created_at=plain.created_at,
    )
    image = store.put_manifest(made)
    for digest in (dump, weights, settings):
        Path(str(store.blob_path(digest))).unlink()
    told = {finding.digest: set(finding.uses) for finding in store.verify().missing}
    assert told == {
        dump: {f"criu_dump of world.procs in {image}"},
        weights: {f"adapter 1 in {image}", f"adapter 2 in {image}"},
        settings: {f"adapter 1 in {image}"},
    }
