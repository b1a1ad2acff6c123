"""The ratios that are promised: what is divided by what, the bar, and what bounds it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Times = Mapping[str, Mapping[str, Sequence[float]]]
"""Seconds an item, one a round, by call and contender."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: Key of the group that has the times.
        call: The call of ours; the peer's is `peer_call`, or the same.
        text: The call as users write it, with every option that is not the default.
        peers: Against the faster of these; `+` between two names adds their times (work that has to be done after the other).
        bar, reach: Ratios of times, theirs to ours, so that more is better; for sizes, bytes of ours to the content's.
        tolerance: How far below the baseline a fresh ratio may lie; disks vary more than processors.
    """

    group: str
    call: str
    text: str
    peers: tuple[str, ...]
    bar: float
    reach: float
    ours: str = "pfimg"
    peer_call: str = ""
    tolerance: float = 0.15

    @property
    def id(self) -> str:
        return f"{self.group}: {self.text} / {self.against}"

    @property
    def against(self) -> str:
        return "harmonic limit" if self.peers == LIMIT else " or ".join(self.peers)

    @property
    def less_is_better(self) -> bool:
        return self.call == "size"

    def meets(self, ratio: float, wanted: float) -> bool:
        return ratio <= wanted if self.less_is_better else ratio >= wanted


@dataclass(frozen=True)
class Figure:
    """A row's ratio: the median over the rounds, the middle half of them, and the peer that was the faster."""

    ratio: float
    low: float
    high: float
    against: str


# What is unverified, and what has to be added to it: 1 / (1 / hash rate + 1 / unverified rate) is the sum of the times.
LIMIT = ("LMCache + hash alone", "plain files + hash alone")
PUT, GET = 'put_many, durability="none"', "get_many(out=)"

_SCALING = (
    ("scaling", "store", PUT),
    ("scaling", "load", GET),
    ("scaling", "hash", "hashing alone"),
    ("scaling", "put again", "put_many(digests=) of stored pages"),
    ("scaling", "look up", "has_many"),
    ("scaling", "store, zstd", 'put_many, codec="zstd", durability="none"'),
    ("scaling", "load, zstd", 'get_many(out=), codec="zstd"'),
    ("scaling", "store, float", 'put_many, codec="float", durability="none"'),
    ("scaling", "load, float", 'get_many(out=), codec="float"'),
    ("scaling", "verify", "verify"),
    ("scaling", "push", "push to a directory"),
    ("scaling", "pull", "pull from a directory"),
    ("scaling, trees", "capture", 'put_tree, durability="none"'),
    ("scaling, trees", "restore", "restore_tree"),
)


def _rows() -> Iterator[Row]:
    for label, put, get in (("64 KiB", (0.85, 1.0), (0.62, 0.72)), ("2 MiB", (0.65, 0.75), (0.52, 0.58))):
        group = f"pages of {label}"
        yield Row(group, "store", PUT, ("LMCache",), *put)
        yield Row(group, "load", GET, ("LMCache",), *get)
        yield Row(group, "store", PUT, LIMIT, 0.9, 0.97)
        yield Row(group, "load", GET, LIMIT, 0.9, 0.97)
    group = "pages of 73,728 B"
    yield Row(group, "store", PUT, ("expert Python",), 2.4, 2.8)
    yield Row(group, "load", GET, ("expert Python",), 3, 3.6)
    yield Row(group, "store", PUT, ("processfork",), 500, 1500, tolerance=0.3)
    yield Row(group, "load", GET, ("processfork",), 8, 11, tolerance=0.3)
    yield Row(group, "store", PUT, ('pfimg, codec="store"',), 0.95, 1.0)
    for label in ("64 KiB", "2 MiB"):
        yield Row(f"disk, {label}", "store", 'put_many, durability="group", disk', ("plain files",), 0.85, 1.0, tolerance=0.3)
    yield Row("presence", "put again", "put_many(digests=) of stored pages", ("LMCache",), 0.5, 1.0, peer_call="look up")
    yield Row("presence", "look up", "has_many", ("LMCache",), 0.5, 1.0)
    best = ("LMCache", "plain files")
    yield Row("20,000 × 4 KiB", "store", PUT, best, 0.7, 1.0)
    yield Row("20,000 × 4 KiB", "load", GET, best, 0.6, 0.8)
    for label, size, encode, decode in (
        ("73,728 B", (0.68, 0.67), (2.5, 3.5), (2.5, 4)),
        ("2 MiB", (0.68, 0.67), (1.0, 1.3), (1.6, 2.2)),
    ):
        group = f"floats, {label}"
        yield Row(group, "size", 'codec="float", size', ("ZipNN",), *size, tolerance=0.01)
        yield Row(group, "encode", 'codec="float", encode, one thread', ("ZipNN",), *encode)
        yield Row(group, "decode", 'codec="float", decode, one thread', ("ZipNN",), *decode)
    yield Row("zstd", "store", 'put_many, codec="zstd", durability="none"', ("expert Python",), 1.15, 1.4)
    for group, call, text in _SCALING:
        yield Row(group, call, text, ("1 thread",), 1.7, 1.9, ours="2 threads")
    yield Row("page manifest", "parse + walk", "transitive_blob_digests(image)", ("orjson",), 5, 10)
    yield Row("trees", "capture", "put_tree", ("restic",), 2, 4, tolerance=0.3)
    yield Row("trees", "restore", "restore_tree", ("restic",), 2, 4, tolerance=0.3)
    yield Row("trees", "capture", "put_tree", ("git",), 1, 1, tolerance=0.3)
    yield Row("trees", "capture", 'put_tree, durability="none"', ("git",), 1, 1, ours="pfimg, none", tolerance=0.3)


ROWS = tuple(_rows())


def figure(row: Row, times: Times) -> Figure | None:
    """The row's ratio; None where either side was not measured."""
    ours = times.get(row.call, {}).get(row.ours)
    if not ours:
        return None
    if row.less_is_better:
        return Figure(*_middle(ours), against=row.against)
    peers = {peer: found for peer in row.peers if (found := _sum(peer, row, times)) is not None}
    if not peers:
        return None
    best = min(peers, key=lambda peer: median(peers[peer]))
    ratios = [theirs / own for theirs, own in zip(peers[best], ours, strict=True)]
    return Figure(*_middle(ratios), against=best)


def _sum(peer: str, row: Row, times: Times) -> list[float] | None:
    """The times of a peer, those of its parts added."""
    total: list[float] = []
    for part in peer.split(" + "):
        call = "hash" if part == "hash alone" else row.peer_call or row.call
        found = times.get(call, {}).get(part)
        if not found:
            return None
        total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
    return total


def _middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return median(ordered), ordered[round(last / 4)], ordered[round(last * 3 / 4)]
