"""Which page makes room: policies on traces of requests whose prompts share prefixes.

    python -m benches.eviction

A request asks for the pages of one prompt from its beginning. What leads without a gap is a hit, and spares the engine its
computing; all that follows is computed and put. Three kinds of requests are mixed, by a seeded generator:

- *chats*: a prompt of 8 to 64 pages, chosen by Zipf's law (exponent 0.9) from 2,000, which grows by two pages with every request,
  behind one of 40 system prompts of 8 pages, the first of which every second chat has;
- *scans*: long prompts of 400 pages that nobody repeats (a document, a batch job);
- *loops*: an agent that asks for the same 600 pages again and again.

The policies are FIFO, LRU, S3-FIFO as the arena does it (a tenth is small; a ghost of the other nine), and W-TinyLFU (a window of
a hundredth, an LRU main part, exact counts that are halved every ten capacities).
"""

import argparse
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate

Key = tuple[str, int, int]
REQUESTS = 5_000
CHATS, SYSTEMS, EXPONENT = 2_000, 40, 0.9


class Fifo:
    """What came first goes first."""

    def __init__(self, slots: int) -> None:
        self.slots, self.pages = slots, OrderedDict[Key, None]()

    def __contains__(self, key: Key) -> bool:
        return key in self.pages

    def hit(self, key: Key) -> None:
        pass

    def put(self, key: Key) -> None:
        if len(self.pages) >= self.slots:
            self.pages.popitem(last=False)
        self.pages[key] = None


class Lru(Fifo):
    """What was asked for longest ago goes first."""

    def hit(self, key: Key) -> None:
        self.pages.move_to_end(key)


class S3Fifo:
    """As rust/core/src/arena/queues.rs."""

    def __init__(self, slots: int) -> None:
        self.slots, self.most_small = slots, max(1, slots // 10)
        self.small, self.main, self.gone = deque[Key](), deque[Key](), deque[Key]()
        self.remembered: set[Key] = set()
        self.rounds: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self.rounds

    def hit(self, key: Key) -> None:
        self.rounds[key] = min(3, self.rounds[key] + 1)

    def put(self, key: Key) -> None:
        if len(self.rounds) >= self.slots:
            self._evict()
        self.rounds[key] = 0
        known = key in self.remembered
        self.remembered.discard(key)
        (self.main if known else self.small).append(key)

    def _evict(self) -> None:
        if len(self.small) >= self.most_small or not self.main:
            while self.small:
                key = self.small.popleft()
                if self.rounds[key] > 1:
                    self.rounds[key] = 0
                    self.main.append(key)
                    continue
                del self.rounds[key]
                if len(self.gone) + self.most_small >= self.slots:
                    self.remembered.discard(self.gone.popleft())
                self.gone.append(key)
                self.remembered.add(key)
                return
        while True:
            key = self.main.popleft()
            if not self.rounds[key]:
                del self.rounds[key]
                return
            self.rounds[key] -= 1
            self.main.append(key)


class TinyLfu:
    """W-TinyLFU with exact counts in place of a sketch, which can only do better than one."""

    def __init__(self, slots: int) -> None:
        self.window, self.main = Lru(max(1, slots // 100)), Lru(slots - max(1, slots // 100))
        self.counts: Counter[Key] = Counter()
        self.counted, self.period = 0, 10 * slots

    def __contains__(self, key: Key) -> bool:
        return key in self.window or key in self.main

    def _count(self, key: Key) -> None:
        self.counts[key] += 1
        self.counted += 1
        if self.counted == self.period:
            self.counts = Counter({key: count // 2 for key, count in self.counts.items() if count > 1})
            self.counted = 0

    def hit(self, key: Key) -> None:
        self._count(key)
        (self.window if key in self.window else self.main).hit(key)

    def put(self, key: Key) -> None:
        self._count(key)
        if len(self.window.pages) >= self.window.slots:
            candidate, _ = self.window.pages.popitem(last=False)
            full = len(self.main.pages) >= self.main.slots
            if not full or self.counts[candidate] > self.counts[next(iter(self.main.pages))]:
                self.main.put(candidate)
        self.window.put(key)


Policy = Fifo | S3Fifo | TinyLfu
POLICIES: dict[str, Callable[[int], Policy]] = {"FIFO": Fifo, "LRU": Lru, "S3-FIFO": S3Fifo, "W-TinyLFU": TinyLfu}
# Of a hundred requests, how many are scans, and how many are loops.
TRACES = {"chats": (0, 0), "chats and scans": (10, 0), "chats and a loop": (0, 10), "all": (10, 10)}


def requests(count: int, scans: int, loops: int, seed: int = 1) -> Iterator[list[Key]]:
    """The pages of each request, in order."""
    chance = random.Random(seed)
    weights = list(accumulate((rank + 1) ** -EXPONENT for rank in range(CHATS)))
    lengths = [chance.randrange(8, 65) for _ in range(CHATS)]
    systems = [min(int(chance.paretovariate(1.0)), SYSTEMS) for _ in range(CHATS)]
    for number in range(count):
        kind = chance.randrange(100)
        if kind < scans:
            yield [("scan", number, page) for page in range(400)]
        elif kind < scans + loops:
            yield [("loop", 0, page) for page in range(600)]
        else:
            (chat,) = chance.choices(range(CHATS), cum_weights=weights)
            lengths[chat] += 2
            system: list[Key] = [("system", systems[chat], page) for page in range(8)]
            yield system + [("chat", chat, page) for page in range(lengths[chat])]


def leading_hits(policy: Policy, trace: Iterator[list[Key]]) -> float:
    """The share of pages that need not be computed; the first fifth of the requests only warms up."""
    trace = iter(trace)
    hits = pages = 0
    for number, request in enumerate(trace):
        lead = next((place for place, key in enumerate(request) if key not in policy), len(request))
        for key in request[:lead]:
            policy.hit(key)
        for key in request[lead:]:
            # Behind the first gap a page may still be there.
            policy.hit(key) if key in policy else policy.put(key)
        if number >= REQUESTS // 5:
            hits += lead
            pages += len(request)
    return hits / pages


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--slots", type=int, nargs="*", default=[4_000, 16_000])
    options = parser.parse_args()
    print("| requests | pages in memory |", " | ".join(POLICIES), "|")
    print("|---|---:|" + "---:|" * len(POLICIES))
    for name, (scans, loops) in TRACES.items():
        for slots in options.slots:
            shares = [leading_hits(policy(slots), requests(REQUESTS, scans, loops)) for policy in POLICIES.values()]
            print(f"| {name} | {slots:,} |", " | ".join(f"{share:.1%}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
