"""Pushing to and pulling from a Hub on this machine, beside `upload_folder` and `snapshot_download` of the same files.

    python -m benches.hub [--rounds N] [--only WORDS] [--json FILE]

The Hub is that of the tests, in a process of its own, with its data where temporary directories are; it grants any number of
requests and tells how many there were. Images are those of `benches.registries`, and what is said of its rounds and times holds
here: pfimg's times are those of whole calls with all checks. `huggingface_hub` uploads, by its defaults and without Xet (which
the Hub of the tests does not speak), the directory that a push to `file://` makes of the same image; it downloads with as many
requests at once as pfimg, and checks nothing. That Hub takes its time, so that there are fewer pages than in the other benchmark.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import pfimg

from .registries import JOBS, Contender, Corpus, Times, run, timed

SIZES: Final = {"2,000 × 64 KiB": (2_000, 64 << 10), "200 × 2 MiB": (200, 2 << 20)}
OWNER: Final = "tester"
_numbers: Final = count()


class Counting:
    """A Hub in another process, which counts requests."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def counted(self, calls: Mapping[str, Callable[[], object]]) -> Times:
        """The seconds and the requests of each call."""
        times: Times = {}
        for name, work in calls.items():
            self.ask("count")
            _, times[name] = timed(work)
            times[f"{name}, requests"] = int(self.ask("count"))
        return times


def serve() -> None:
    """A Hub that is told by lines what to do, until they end."""
    from tests.hub import Hub
    from tests.hub.limits import Quota

    with Hub() as hub:
        for line in sys.stdin:
            if line.strip() == "begin":
                hub.clear()
                hub.limits.quotas = {"api": Quota(1 << 30), "resolvers": Quota(1 << 30)}
                print(hub.url, hub.token(OWNER), flush=True)
            else:
                print(len(hub.requests), flush=True)
                hub.requests.clear()
            assert hub.errors == []


@contextmanager
def started() -> Iterator[tuple[Callable[[], str], dict[str, Contender]]]:
    """A way to have a Hub forget everything, and who is measured there."""
    command = [sys.executable, "-m", "benches.hub", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        hub = Counting(process)
        url, token = hub.ask("begin").split()
        # Before the client is imported, which reads some of them then.
        os.environ |= {
            "HF_ENDPOINT": url,
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        yield (
            lambda: hub.ask("begin"),
            {
                "pfimg": partial(by_pfimg, hub, "auto"),
                "pfimg, published layout": partial(by_pfimg, hub, "reference"),
                "huggingface_hub": partial(by_client, hub),
            },
        )
        assert process.stdin is not None
        process.stdin.close()


def by_pfimg(hub: Counting, layout: str, _: str, images: Corpus, scratch: Path) -> Times:
    place = f"hf://{OWNER}/{layout}"
    target = pfimg.PfStore.open(scratch / "store", durability="none")

    def push() -> object:
        return pfimg.push(images.store, images.image, place, layout=layout, jobs=JOBS)

    times = hub.counted({"push": push, "push again": push, "pull": lambda: pfimg.pull(place, target, jobs=JOBS)})
    assert list(target.images())
    return times


def by_client(hub: Counting, _: str, images: Corpus, scratch: Path) -> Times:
    from huggingface_hub import HfApi

    api = HfApi(os.environ["HF_ENDPOINT"])
    # Commits of this Hub have the same ids again, of which the client remembers what is in them.
    folder, name = scratch / "folder", f"{OWNER}/folder-{next(_numbers)}"
    pfimg.push(images.store, images.image, f"file://{folder}")

    def push() -> None:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)

    def pull() -> None:
        api.snapshot_download(name, repo_type="dataset", local_dir=scratch / "snapshot", max_workers=JOBS)

    return hub.counted({"push": push, "push again": push, "pull": pull})


def table(results: Mapping[str, Mapping[str, list[Times]]]) -> str:
    """Markdown: seconds, requests, and how many times faster pfimg is by its defaults."""
    lines = [
        "| blobs | contender | push, s | pull, s | push again, s | requests: push | pull | again | pfimg pushes | pfimg pulls |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group, found in results.items():
        for name, rounds in found.items():
            calls = ("push", "pull", "push again")
            cells = [f"{median(times[call] for times in rounds):.2f}" for call in calls]
            cells += [f"{median(times[f'{call}, requests'] for times in rounds):,.0f}" for call in calls]
            for call in ("push", "pull"):
                ratios = [theirs[call] / ours[call] for ours, theirs in zip(found["pfimg"], rounds, strict=True)]
                cells.append("" if name == "pfimg" else f"{median(ratios):.2f} ×")
            lines.append("| " + " | ".join([group, name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="groups whose name has one of these words")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with TemporaryDirectory(prefix="pfimg-bench-", ignore_cleanup_errors=True) as home:
        os.environ["HF_HOME"] = home
        results = {
            group: run(group, started, options.rounds, pages, page_bytes)
            for group, (pages, page_bytes) in SIZES.items()
            if not options.only or any(word in group for word in options.only)
        }
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
