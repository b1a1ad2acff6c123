"""Pushing to and pulling from real servers on this machine, beside the clients that users would take for the same bytes.

    python -m benches.registries [--rounds N] [--only WORDS] [--json FILE]

An image of 5,000 pages of 64 KiB, then one of 200 pages of 2 MiB, of real keys and values, no two alike; on IPFS one of 2,000
pages of 64 KiB. Every contender moves the same frames with 16 requests at once, in an empty place for each round, in rounds in
turn; ratios are medians of those within a round, and who takes a minute is measured in the first one only. Stores and what is
downloaded lie in memory (/dev/shm), the servers' data where temporary directories are.

pfimg's times are those of the whole calls: walking, asking what is there, verifying every blob, signing, and when pulling hashing
every byte and storing it. The others only move bytes: out of files, and into files.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

from tests.servers import Kubo, S3Server, distribution, kubo, minio, versitygw

import pfimg

from .pages import Batch

JOBS = 16
MEMORY = Path("/dev/shm")
SIZES = {"5,000 × 64 KiB": (5_000, 64 << 10), "200 × 2 MiB": (200, 2 << 20)}
SLOW = ("boto3", "processfork")
Times = dict[str, float]


@dataclass(frozen=True)
class Corpus:
    """An image in a store, and the frames that it consists of."""

    store: pfimg.PfStore
    image: str

    @property
    def frames(self) -> list[Path]:
        manifest = self.store.get_manifest(self.image)
        digests = pfimg.transitive_blob_digests(manifest, self.store)
        return [path for digest in digests if (path := self.store.blob_path(digest)) is not None]


def corpus(root: Path, count: int, page_bytes: int, salt: int) -> Corpus:
    """`count` blobs of `page_bytes`, half of them K and half V."""
    batch = Batch(page_bytes, count * page_bytes)
    batch.renew(salt)
    # The last dimension takes up whatever the page holds.
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=1, n_heads=1, head_dim=page_bytes // 32, dtype="bf16")
    store = pfimg.PfStore.open(root, durability="none")
    half = count // 2
    cache = store.put_pages(meta, k=batch.pages[:half], v=batch.pages[half:])
    return Corpus(store, pfimg.snapshot(store, agent="bench", cache=cache))


class Pfimg:
    """`push` and `pull`."""

    def __init__(self, name: str, layout: str) -> None:
        self.name, self.layout = name, layout

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:
        def push() -> str:
            return pfimg.push(corpus.store, corpus.image, place, layout=self.layout, jobs=JOBS).ref

        ref, first = timed(push)
        _, again = timed(push)
        target = pfimg.PfStore.open(scratch / "store", durability="none")
        _, pull = timed(lambda: pfimg.pull(ref, target, jobs=JOBS))
        assert list(target.images())
        return {"push": first, "push again": again, "pull": pull}


class Obstore:
    """A loop over files in threads: what one would write with that library."""

    name = "obstore loop"

    def __init__(self, server: S3Server) -> None:
        self.server = server

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:
        from obstore.store import S3Store

        server = self.server
        bucket = S3Store(
            place.partition("://")[2],
            endpoint=server.endpoint,
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            region=server.region,
            client_options={"allow_http": True},
        )
        frames = corpus.frames
        scratch.mkdir()

        def put(path: Path) -> None:
            bucket.put(path.name, path.read_bytes(), use_multipart=False)

        def get(path: Path) -> None:
            (scratch / path.name).write_bytes(bucket.get(path.name).bytes())

        return {"push": together(put, frames), "pull": together(get, frames)}


class Boto3:
    """One transfer manager for all files, with as many requests at once."""

    name = "boto3"

    def __init__(self, server: S3Server) -> None:
        self.server = server

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:
        import boto3
        from boto3.s3.transfer import TransferConfig, create_transfer_manager  # type: ignore[import-untyped]
        from botocore.config import Config

        server = self.server
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name=server.region,
            config=Config(max_pool_connections=JOBS, s3={"addressing_style": "path"}),
        )
        bucket = place.partition("://")[2]
        scratch.mkdir()
        frames = corpus.frames

        def all_of(start: Callable[[Any, Path], Any]) -> float:
            with create_transfer_manager(client, TransferConfig(max_concurrency=JOBS)) as manager:
                begin = perf_counter()
                for transfer in [start(manager, path) for path in frames]:
                    transfer.result()
                return perf_counter() - begin

        return {
            "push": all_of(lambda manager, path: manager.upload(str(path), bucket, path.name)),
            "pull": all_of(lambda manager, path: manager.download(bucket, path.name, str(scratch / path.name))),
        }


class Reference:
    """The reference command."""

    name = "processfork"

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = os.environ | env

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:
        def pf(store: Path, *arguments: str) -> None:
            subprocess.run(["pf", "--store", store, *arguments], env=self.env, check=True, capture_output=True)

        _, push = timed(lambda: pf(corpus.store.root, "push", corpus.image, place))
        _, pull = timed(lambda: pf(scratch / "store", "pull", place))
        return {"push": push, "pull": pull}


class IpfsCommand:
    """`ipfs add -r` of a directory of the frames, and `ipfs get`."""

    name = "ipfs add -r, get"

    def __init__(self, node: Kubo) -> None:
        self.node = node

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:  # noqa: ARG002 - the node is the place
        frames = scratch / "frames"
        frames.mkdir(parents=True)
        for path in corpus.frames:
            (frames / path.name).hardlink_to(path)
        root, push = timed(lambda: self.node.run("add", "-r", "--quieter", frames).decode().strip())
        _, pull = timed(lambda: self.node.run("get", "--progress=false", "-o", scratch / "got", root))
        return {"push": push, "pull": pull}


class IpfsLoop:
    """A request for each blob, one after another on one connection: `/add`, and `/cat`."""

    name = "a request a blob"

    def __init__(self, node: Kubo) -> None:
        self.node = node

    def __call__(self, place: str, corpus: Corpus, scratch: Path) -> Times:  # noqa: ARG002 - the node is the place
        import httpx

        scratch.mkdir()
        with httpx.Client(base_url=f"{self.node.api}/api/v0", trust_env=False) as client:

            def add(path: Path) -> str:
                answer = client.post("/add", params={"quieter": "true"}, files={"file": path.read_bytes()}).raise_for_status()
                return str(answer.json()["Hash"])

            def get(cid: str) -> int:
                return (scratch / cid).write_bytes(client.post("/cat", params={"arg": cid}).raise_for_status().content)

            cids: list[str] = []
            _, push = timed(lambda: cids.extend(map(add, corpus.frames)))
            _, pull = timed(lambda: sum(map(get, cids)))
        return {"push": push, "pull": pull}


def timed(work: Callable[[], object]) -> tuple[str, float]:
    """What a call returns, and the seconds it took."""
    start = perf_counter()
    result = work()
    return str(result), perf_counter() - start


def together(work: Callable[[Path], object], items: list[Path]) -> float:
    """Seconds for all of them, so many at once."""
    start = perf_counter()
    with ThreadPoolExecutor(JOBS) as pool:
        for _ in pool.map(work, items):
            pass
    return perf_counter() - start


Contender = Callable[[str, Corpus, Path], Times]


@contextmanager
def s3(start: Callable[[], AbstractContextManager[S3Server]]) -> Iterator[tuple[Callable[[], str], dict[str, Contender]]]:
    """A way to a fresh bucket, and who is measured there."""
    with start() as server:
        env = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": server.region,
        }
        os.environ.update(env)
        contenders: dict[str, Contender] = {
            "pfimg": Pfimg("pfimg", "reference"),
            "pfimg, packed": Pfimg("pfimg, packed", "packed"),
            "obstore loop": Obstore(server),
            "boto3": Boto3(server),
        }
        if shutil.which("pf"):
            contenders["processfork"] = Reference(env)
        yield (lambda: f"s3://{server.make_bucket()}"), contenders


@contextmanager
def oci() -> Iterator[tuple[Callable[[], str], dict[str, Contender]]]:
    """A way to a fresh repository, and who is measured there."""
    with distribution() as server:
        contenders: dict[str, Contender] = {
            "pfimg": Pfimg("pfimg", "reference"),
            "pfimg, packed": Pfimg("pfimg, packed", "packed"),
        }
        if shutil.which("pf"):
            contenders["processfork"] = Reference({})
        yield (lambda: f"oci://{server.registry}/{server.repository()}"), contenders


@contextmanager
def ipfs() -> Iterator[tuple[Callable[[], str], dict[str, Contender]]]:
    """A way to have a node forget everything, and who is measured there."""
    with kubo() as node:
        os.environ["IPFS_API"] = node.api

        def fresh() -> str:
            if pins := node.run("pin", "ls", "--type=recursive", "--quiet").split():
                node.run("pin", "rm", *(pin.decode() for pin in pins))
            node.run("repo", "gc", "--quiet")
            return "ipfs://"

        yield fresh, {"pfimg": Pfimg("pfimg", "auto"), "ipfs add -r, get": IpfsCommand(node), "a request a blob": IpfsLoop(node)}


Server = Callable[[], AbstractContextManager[tuple[Callable[[], str], dict[str, Contender]]]]
SERVERS: dict[str, Server] = {"MinIO": lambda: s3(minio), "versitygw": lambda: s3(versitygw), "distribution": oci, "Kubo": ipfs}
SIZES_OF = {"Kubo": {"2,000 × 64 KiB": (2_000, 64 << 10)}}


def measure(rounds: int, only: list[str]) -> dict[str, dict[str, list[Times]]]:
    """Seconds by group and contender, one dictionary a round."""
    results: dict[str, dict[str, list[Times]]] = {}
    for server, start in SERVERS.items():
        for size, (count, page_bytes) in SIZES_OF.get(server, SIZES).items():
            group = f"{server}, {size}"
            if only and not any(word.lower() in group.lower() for word in only):
                continue
            results[group] = run(group, start, rounds, count, page_bytes)
    return results


def run(group: str, start: Server, rounds: int, count: int, page_bytes: int) -> dict[str, list[Times]]:
    """One group; the first round only warms up."""
    found: dict[str, list[Times]] = defaultdict(list)
    base = Path(mkdtemp(prefix="pfimg-bench-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        with start() as (fresh, contenders):
            for number in range(rounds + 1):
                images = corpus(base / f"corpus-{number}", count, page_bytes, number)
                names = list(contenders)
                at = number % len(names)
                for name in names[at:] + names[:at]:
                    if name in SLOW and number != 1:
                        continue
                    times = contenders[name](fresh(), images, base / "scratch")
                    shutil.rmtree(base / "scratch", ignore_errors=True)
                    if number:
                        found[name].append(times)
                shutil.rmtree(images.store.root)
                print(f"{group}: round {number} of {rounds}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return found


def tables(results: dict[str, dict[str, list[Times]]]) -> str:
    """Markdown: what was timed, and how many times faster pfimg is."""
    lines = [
        "| server, blobs | contender | push, s | pull, s | push again, s | pfimg pushes | pfimg pulls |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for group, found in results.items():
        for name, rounds in found.items():
            cells = [
                f"{median(times[call] for times in rounds):.2f}" if call in rounds[0] else ""
                for call in ("push", "pull", "push again")
            ]
            for call in ("push", "pull"):
                ratios = [theirs[call] / ours[call] for ours, theirs in zip(found["pfimg"], rounds, strict=False)]
                cells.append("" if name == "pfimg" else f"{median(ratios):.2f} ×")
            lines.append("| " + " | ".join([group, name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="groups whose name has one of these words")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options.rounds, options.only)
    print(tables(results))
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
