"""Repairs from directory registries, some of which cannot be read."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pfimg
from pfimg.registries import file

if TYPE_CHECKING:
    from collections.abc import Callable


def lose_a_blob(store: pfimg.PfStore, image: str) -> str:
    digest = store.get_manifest(image).world.env
    Path(str(store.blob_path(digest))).unlink()
    return digest


def not_described(root: Path) -> None:
    root.mkdir()
    (root / "pfimg.json").write_text("{")


def described_at_length(root: Path) -> None:
    root.mkdir()
    (root / "pfimg.json").touch()
    os.truncate(root / "pfimg.json", 1 << 30)


def in_a_circle(root: Path) -> None:
    root.symlink_to(root)


def not_for_us(root: Path) -> None:
    root.mkdir(0)


@pytest.mark.parametrize("damage", [not_described, described_at_length, in_a_circle, not_for_us])
def test_a_source_of_repairs_that_is_damaged_costs_neither_the_report_nor_the_next_source(
    tmp_path: Path,
    ref: str,
    store: pfimg.PfStore,
    image: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pfimg.push(store, image, ref)
    lost = lose_a_blob(store, image)
    damage(tmp_path / "damaged")
    if damage is not_for_us and os.geteuid() == 0:
        # Root may read everything; that this was refused is what the system would say to others.
        monkeypatch.setattr(file, "_stat", refusing(tmp_path / "damaged"))
    sources = [f"file://{tmp_path}/damaged", ref]
    with caplog.at_level(logging.WARNING, "pfimg"):
        report = store.verify(repair_from=sources[:1])
        assert [finding.digest for finding in report.missing] == [lost]
        assert report.repaired == ()
        assert f"nothing more can be repaired from {sources[0]}" in caplog.text
        report = store.verify(repair_from=sources)
    assert report.ok
    assert report.repaired == (lost,)


def refusing(root: Path) -> Callable[[Path], os.stat_result | None]:
    look = file._stat

    def refuse(path: Path) -> os.stat_result | None:
        if root in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    return refuse


def test_what_a_source_healed_before_it_failed_counts(
    root: Path, ref: str, store: pfimg.PfStore, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed = pfimg.push(store, image, ref, layout="packed").ref
    pfimg.push(store, image, ref)
    lost = lose_a_blob(store, image)
    # The loose blobs are asked for first; then the packs, which cannot be read.
    for path in (root / "packs").glob("*.idx"):
        path.write_bytes(b"none")
    report = store.verify(repair_from=packed)
    assert report.ok
    assert report.repaired == (lost,)
    assert "nothing more can be repaired from" in caplog.text


@pytest.mark.parametrize("source", ["nothing://x", "file://relative", "no reference"])
def test_a_source_of_repairs_that_is_none_is_told(store: pfimg.PfStore, image: str, source: str) -> None:
    lose_a_blob(store, image)
    with pytest.raises((pfimg.BadRef, pfimg.UnsupportedScheme)):
        store.verify(repair_from=source)
