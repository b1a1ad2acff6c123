import os
from pathlib import Path
from typing import Any

import click
import pytest

import pfimg
from pfimg.cli.units import duration, plural, size

Command = Any


def frame(store: Path, digest: str) -> Path:
    return store / "blobs" / "sha256" / digest[7:9] / f"{digest[7:]}.zst"


def test_verify_finds_and_heals_damage(pf: Command, image: str, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/registry"
    pf("push", image, ref)
    sound = pf("verify", "--json")
    assert (sound.code, sound.json["ok"], sound.json["corrupt"]) == (0, True, [])
    trace = pfimg.PfStore.open(tmp_path / "store").get_manifest(image).world.procs
    path = frame(tmp_path / "store", trace)
    path.write_bytes(path.read_bytes()[:-1])
    damaged = pf("verify", "--json")
    assert (damaged.code, damaged.json["ok"], damaged.err) == (4, False, "")
    assert [finding["digest"] for finding in damaged.json["corrupt"]] == [trace]
    assert pf("verify").code == 4  # missing from now on: the damaged file is in quarantine
    healed = pf("verify", "--repair-from", ref, "--json")
    assert (healed.code, healed.json["repaired"]) == (0, [trace])
    assert pf("verify").code == 0


def test_gc_removes_what_no_image_needs(pf: Command, image: str) -> None:
    blobs = pf("stats", "--json").json["blobs"]
    kept = pf("gc", "--json").json
    assert (kept["freed"], kept["kept"]) == (0, blobs)
    pf("rm", image)
    assert pf("gc", "--json").json["freed"] == 0  # younger than a day
    assert pf("gc", "--grace", "0", "--dry-run", "--json").json["freed"] == blobs
    assert pf("stats", "--json").json["blobs"] == blobs
    assert pf("gc", "--grace", "0", "--json").json["freed"] == blobs
    assert pf("stats", "--json").json["blobs"] == 0
    assert pf("gc").code == pf("stats").code == 0


def test_gc_takes_sizes_and_times(pf: Command, image: str, tmp_path: Path) -> None:
    pf("rm", image)
    for path in (tmp_path / "store" / "blobs").rglob("*.zst"):
        os.utime(path, (0, 0))
    assert pf("gc", "--max-bytes", "1GB", "--json").json["freed"] >= 0
    result = pf("gc", "--grace", "soon")
    assert result.code == 2
    assert "'soon'" in result.line
    assert pf("gc", "--max-bytes", "10 parsecs").code == 2


@pytest.mark.parametrize(
    ("text", "bytes"), [("0", 0), ("500000", 500_000), ("1kB", 1000), ("1.5 MiB", 1_572_864), ("2T", 2 * 10**12)]
)
def test_sizes(text: str, bytes: int) -> None:
    assert size(None, None, text) == bytes  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("1.5h", 5400), ("7d", 604_800), ("2 w", 1_209_600)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(None, None, text) == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "-1", "1e3", "GB", "1 GB 2", "\u0661"])
def test_what_is_no_number_is_refused(text: str) -> None:
    for read in (size, duration):
        with pytest.raises(click.BadParameter):
            read(None, None, text)  # type: ignore[arg-type]


def test_plurals() -> None:
    assert [plural(n, "directory") for n in (0, 1, 1234)] == ["0 directories", "1 directory", "1,234 directories"]
    assert plural(2, "page") == "2 pages"


def test_gc_of_a_registry(pf: Command, image: str, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/registry"
    pf("push", image, ref)
    pf("push", image, f"{ref}#one")
    pf("rm", ref)
    assert pf("gc", ref, "--grace", "0", "--json").json["freed"] == 0
    pf("rm", f"{ref}#one")
    told = pf("gc", ref, "--grace", "0", "--dry-run", "--json").json
    assert told["freed"] > 0
    assert "would be freed" in pf("gc", ref, "--grace", "0", "--dry-run").out
    assert pf("gc", ref, "--grace", "0", "--json").json == {**told, "dry_run": False}
    assert pf("gc", ref, "--max-bytes", "1M").code == 2
    assert pf("gc", f"file://{tmp_path}/nothing").code == 3
