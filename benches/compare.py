"""Measures everything side by side and keeps the times in a JSON file.

    python -m benches.compare [--rounds N] [--only NAME…] [--into FILE] [--add] [--disk DIR]

Groups that were measured replace those of the same name in the file, from which `python -m benches.report` writes
docs/performance.md.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import pfimg
from pfimg._core import kernel, threads

from . import rounds
from .groups import all_groups
from .peers import lmcache, zipnn

RESULTS = Path(__file__).parent / "results.json"
Document = dict[str, Any]


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = next((line.split(": ")[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "processor": f"{cpu.strip()}, {os.cpu_count()} cores",
        "threads": str(threads()),
        "kernel": kernel(),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """The peers' versions, and ours."""
    found = {"pfimg": pfimg.__version__, "LMCache": lmcache.VERSION, "ZipNN": zipnn.VERSION}
    for package in ("processfork", "zstandard", "orjson", "blake3", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for command in ("git", "restic"):
        try:
            said = subprocess.run([command, "version"], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        found[command] = next(word for word in said.split() if word[0].isdigit())
    return found


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    mounts = [line.split() for line in _lines("/proc/self/mounts")]
    above = [(len(point), kind) for _, point, kind, *_ in mounts if directory.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux
        return []


def measure(only: list[str], count: int, memory: Path, disk: Path, say: Callable[[str], None]) -> dict[str, Document]:
    """The groups whose names contain one of `only`, or all."""
    results = {}
    for name, make in all_groups():
        if only and not any(part in name for part in only):
            continue
        group = make()
        base = Path(mkdtemp(prefix="pfimg-bench-", dir=disk if group.on_disk else memory))
        try:
            result = rounds.run(group, count, base, say)
        finally:
            rmtree(base)
        results[name] = {
            "title": group.title,
            "item_bytes": group.item_bytes,
            "place": file_system(base.parent),
            "date": datetime.now(UTC).date().isoformat(),
            "rounds": min(count, group.most_rounds or count),
            "disturbed_rounds": result.disturbed,
            "missing": result.missing,
            "seconds": {
                call: {who: [float(f"{second:.5g}") for second in by[who]] for who in group.contenders if who in by}
                for call, by in result.seconds.items()
            },
        }
        for who, why in result.missing.items():
            say(f"{name}: without {who} ({why})")
    return results


def _added(before: Document | None, group: Document) -> Document:
    """A group with the rounds of an earlier run before its own. (Contenders that one of them misses are left out.)"""
    if before is None:
        return group
    pairs = {call: (before["seconds"].get(call, {}), by) for call, by in group["seconds"].items()}
    seconds = {call: {who: old[who] + new[who] for who in new if who in old} for call, (old, new) in pairs.items()}
    sums = {key: before[key] + group[key] for key in ("rounds", "disturbed_rounds")}
    return group | sums | {"missing": before["missing"] | group["missing"], "seconds": seconds}


def options() -> argparse.ArgumentParser:
    """What a measurement may be told."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    memory = Path("/dev/shm")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="groups whose name contains this")
    parser.add_argument("--memory", type=Path, default=memory if memory.is_dir() else None, help="a directory in memory")
    parser.add_argument("--disk", type=Path, default=Path(__file__).parents[1] / ".cache", help="a directory on a disk")
    return parser


def main() -> None:
    parser = options()
    parser.add_argument("--into", type=Path, default=RESULTS, help="the file")
    parser.add_argument("--add", action="store_true", help="add the rounds to those of the same groups in the file")
    told = parser.parse_args()
    told.disk.mkdir(exist_ok=True)
    document: Document = json.loads(told.into.read_text()) if told.into.exists() else {"groups": {}}
    if document.get("machine") != machine():
        document = {"machine": machine(), "groups": {}}  # figures of two machines do not stand in one table
    groups = measure(told.only, told.rounds, told.memory, told.disk, rounds.say)
    if told.add:
        groups = {name: _added(document["groups"].get(name), group) for name, group in groups.items()}
    document |= {"versions": versions(), "groups": document["groups"] | groups}
    told.into.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
