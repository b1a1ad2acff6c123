"""Capturing and restoring a directory tree, beside the tools that users would take for it.

    python -m benches.trees [--rounds N] [--files N] [--base DIR] [--systems KEYS] [--json FILE]

The corpus is made from a seed: 50,000 regular files in 2,000 directories up to five deep; sizes log-normal (median 3 KiB, sigma
1.7, at most 4 MiB, one in a hundred empty), together 635 MB; half of them words, a third bytes that nothing compresses, the rest
tables of numbers, and one in twenty a copy of the one before; and 500 symbolic links. Every system reads it from memory, and it
was written out to the disk, so that no system pays for that.

Every system gets a fresh repository and a fresh target in every round; all are deleted at the end, since creating files is slow
on ext4 for a while after many were deleted. Timed is the one call, or the one command with its start.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree, which
from statistics import median
from tempfile import mkdtemp
from time import perf_counter
from typing import Protocol, TypedDict

import numpy as np

import pfimg

FILES = 50_000
LINKS = 500
DIRECTORIES = 2_000
LARGEST = 4 << 20


class Row(TypedDict):
    """One measurement."""

    system: str
    call: str
    round: int
    seconds: float


class System(Protocol):
    """One way to keep directories; made with a directory of its own, which does not exist yet."""

    key: str
    name: str
    options: str

    def __init__(self, root: Path) -> None: ...
    def capture(self, directory: Path) -> None: ...
    def restore(self, target: Path) -> None: ...


class Pfimg:
    """`put_tree` and `restore_tree` as they come: every blob is on stable storage when `put_tree` returns."""

    key = "pfimg"
    name = "pfimg"
    options = "defaults: SHA-256, codec auto, durability group"
    durability = "group"

    def __init__(self, root: Path) -> None:
        self._store = pfimg.PfStore.open(root, durability=self.durability)
        self._tree = ""

    def capture(self, directory: Path) -> None:
        self._tree = self._store.put_tree(directory, default_ignores=False)

    def restore(self, target: Path) -> None:
        self._store.restore_tree(self._tree, target)


class PfimgCache(Pfimg):
    """The same without waiting for the disk, as git and plain copies do it."""

    key = "cache"
    name = "pfimg, none"
    options = 'durability="none"'
    durability = "none"


class Command:
    """What systems that are commands share."""

    command: str

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir()

    def _run(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> None:
        # Nothing of the user's own settings or caches is read or written.
        home = {"HOME": str(self._root), "XDG_CACHE_HOME": str(self._root / "cache")}
        command = [self.command, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=cwd, env=os.environ | home | environment)


class Restic(Command):
    """A backup program: packs of encrypted, compressed chunks, each pack synced."""

    key = name = "restic"
    command = "restic"
    options = "defaults, repository format 2 (zstd), local; the repository is made beforehand"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._restic("init", "--repository-version", "2")

    def _restic(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        self._run("--quiet", "--repo", self._root / "repository", *arguments, cwd=cwd, RESTIC_PASSWORD="bench")

    def capture(self, directory: Path) -> None:
        # From inside, so that the paths it keeps are those below the directory.
        self._restic("backup", ".", cwd=directory)

    def restore(self, target: Path) -> None:
        self._restic("restore", "latest", "--target", target)


class Git(Command):
    """Loose objects, one zlib file each, none synced."""

    key = name = "git"
    command = "git"
    options = "defaults: add --all, checkout-index --all; the repository is made beforehand"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._run("init", "--quiet", "--bare", root / "repository")

    def _git(self, work_tree: Path, *arguments: str) -> None:
        self._run("--git-dir", self._root / "repository", "--work-tree", work_tree, *arguments, cwd=work_tree)

    def capture(self, directory: Path) -> None:
        self._git(directory, "add", "--all")

    def restore(self, target: Path) -> None:
        target.mkdir()
        self._git(target, "checkout-index", "--all")


SYSTEMS: tuple[type[System], ...] = (Pfimg, PfimgCache, Restic, Git)


def installed(system: type[System]) -> bool:
    """Whether its command, if it is one, is there."""
    return not issubclass(system, Command) or which(system.command) is not None


def make_corpus(root: Path, files: int = FILES, seed: int = 1) -> int:
    """Makes the corpus at `root`; returns the bytes of its files."""
    rng = np.random.default_rng(seed)
    ends = [b"\n" if new_line else b" " for new_line in rng.random(4096) < 0.1]
    words = [
        rng.integers(97, 123, length, np.uint8).tobytes() + end
        for length, end in zip(rng.integers(1, 12, 4096), ends, strict=True)
    ]
    directories = [root]
    root.mkdir()
    for index in range(DIRECTORIES * files // FILES):
        above = directories[int(rng.integers(len(directories)))]
        if len(above.relative_to(root).parts) < 5:
            directories.append(above / f"d{index:04}")
            directories[-1].mkdir()
    sizes = np.minimum(rng.lognormal(np.log(3 << 10), 1.7, files), LARGEST).astype(int) * (rng.random(files) >= 0.01)
    kinds = rng.choice(4, files, p=[0.475, 0.3167, 0.1583, 0.05])
    homes = rng.integers(len(directories), size=files)
    total, last = 0, b""
    for index, (size, kind, home) in enumerate(zip(sizes.tolist(), kinds.tolist(), homes.tolist(), strict=True)):
        if kind == 0:
            # Few words are frequent and many are rare, as in what people write.
            chosen = (4096 * rng.random(size // 4 + 1) ** 3).astype(int).tolist()
            last = b"".join(map(words.__getitem__, chosen))[:size]
        elif kind == 1:
            last = rng.bytes(size)
        elif kind == 2:
            last = np.cumsum(rng.integers(0, 50, size // 4 + 1)).astype("<i4").tobytes()[:size]
        (directories[home] / f"f{index:05}.{'txt' if kind == 0 else 'bin'}").write_bytes(last)
        total += len(last)
    for index in range(LINKS * files // FILES):
        (directories[int(homes[index])] / f"l{index:03}").symlink_to(f"f{index:05}.bin")
    return total


def listing(root: Path) -> dict[str, int | str]:
    """Size of each file and target of each link below `root`, to see that all came back."""
    found: dict[str, int | str] = {}
    for directory, below, names in os.walk(root):
        for path in (os.path.join(directory, name) for name in below + names):
            if os.path.islink(path):
                found[os.path.relpath(path, root)] = os.readlink(path)
            elif os.path.isfile(path):
                found[os.path.relpath(path, root)] = os.path.getsize(path)
    return found


def measure(base: Path, rounds: int, files: int = FILES, systems: Sequence[type[System]] = SYSTEMS) -> list[Row]:
    """Times every system in every round, the corpus and everything else in new directories in `base`."""
    corpus = base / "corpus"
    total = make_corpus(corpus, files)
    expected = listing(corpus)
    print(f"{len(expected)} files and links, {total / 1e6:.0f} MB", file=sys.stderr)
    rows: list[Row] = []
    for round_ in range(rounds):
        # Each goes first, second, … in turn.
        for system in (systems[(at + round_) % len(systems)] for at in range(len(systems))):
            here = base / f"{round_} {system.name}"
            here.mkdir()
            subject = system(here / "repository")
            # What one leaves to be written later is not written while the next is timed.
            os.sync()
            start = perf_counter()
            subject.capture(corpus)
            captured = perf_counter()
            os.sync()
            resumed = perf_counter()
            subject.restore(here / "restored")
            restored = perf_counter()
            if listing(here / "restored") != expected:
                sys.exit(f"{system.name} did not give back what it got")
            rows.append({"system": system.name, "call": "capture", "round": round_, "seconds": captured - start})
            rows.append({"system": system.name, "call": "restore", "round": round_, "seconds": restored - resumed})
        print(f"round {round_ + 1} of {rounds}", file=sys.stderr)
    return rows


def ratios(rows: Sequence[Row], call: str, ours: str, other: str) -> list[float]:
    """How many times faster `ours` was than `other`, one number a round."""
    seconds = {(row["system"], row["round"]): row["seconds"] for row in rows if row["call"] == call}
    rounds = sorted({round_ for _, round_ in seconds})
    return [seconds[other, round_] / seconds[ours, round_] for round_ in rounds]


def table(rows: Sequence[Row]) -> str:
    """Medians of the seconds, and medians of the ratios within each round, in Markdown."""
    found = {row["system"] for row in rows}
    names = [system.name for system in SYSTEMS if system.name in found]
    mine = [name for name in names if name.startswith(Pfimg.name)]
    others = [name for name in names if name not in mine]
    titles = ["call", *(f"{name} s" for name in names), *(f"{own} × {other}" for own in mine for other in others)]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for call in ("capture", "restore"):
        seconds = [[row["seconds"] for row in rows if (row["system"], row["call"]) == (name, call)] for name in names]
        cells = [f"{median(values):.2f}" for values in seconds]
        cells += [f"{median(ratios(rows, call, own, other)):.2f} ×" for own in mine for other in others]
        lines.append(f"| {call} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--base", type=Path, help="where everything is made (default: where temporaries are)")
    parser.add_argument("--systems", default=",".join(system.key for system in SYSTEMS), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="add every figure to this file")
    options = parser.parse_args()
    asked = [system for system in SYSTEMS if system.key in options.systems.split(",")]
    for absent in [system for system in asked if not installed(system)]:
        print(f"{absent.name} is not installed", file=sys.stderr)
        asked.remove(absent)
    base = Path(mkdtemp(prefix="pfimg-trees-", dir=options.base))
    try:
        rows = measure(base, options.rounds, options.files, asked)
    finally:
        rmtree(base)
    if options.json:
        before: list[Row] = json.loads(options.json.read_text()) if options.json.exists() else []
        later = 1 + max((row["round"] for row in before), default=-1)
        rows = before + [{**row, "round": row["round"] + later} for row in rows]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
