"""Which key of which namespace stands for which page: the index of a `PageCache`.

All of it is in memory, where a look-up of a key costs less than a microsecond, and in an SQLite database (write-ahead log,
changes in batches), from which it comes back after a restart. What the database says of a page was sealed with its key and
namespace: a row that was damaged is not there.

Namespaces keep their keys in the order of their last use; pages that several keys stand for are counted once. Times of use do not
outlive the process: after a restart, keys are as old as when they were put.

`recorded` reads such a database beside the process that has it open, as far as that one has written it.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pfimg.errors import FormatError, StoreError

# Seconds between the keys of one put, so that the database keeps their order.
APART = 1e-6

_SCHEMA = """
CREATE TABLE IF NOT EXISTS namespaces (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pages (
    namespace INTEGER NOT NULL, key BLOB NOT NULL, digest TEXT NOT NULL, bytes INTEGER NOT NULL, put REAL NOT NULL,
    seal BLOB NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class CacheIdentity:
    """What makes pages interchangeable: only between equal identities may a key stand for the same page.

    Attributes:
        model: Name of the model.
        revision: Revision of its weights.
        dtype: Type of the numbers in a page.
        geometry: What a page holds, in the engine's order: tokens, layers, heads, numbers a head.
        layout: How they lie in it, in the engine's word.
        tp_rank: Which part of a tensor-parallel group the pages belong to.
        tp_size: In how many parts the group is.
    """

    model: str
    revision: str
    dtype: str
    geometry: tuple[int, ...]
    layout: str
    tp_rank: int = 0
    tp_size: int = 1


class Entry:
    """What a key stands for."""

    __slots__ = ("digest", "put", "size", "used")

    def __init__(self, digest: str, size: int, put: float, used: int) -> None:
        self.digest, self.size, self.put, self.used = digest, size, put, used


class Namespace:
    """Keys of one identity, the least recently used first."""

    def __init__(self, number: int, name: str, identity: str) -> None:
        self.number, self.name, self.identity = number, name, identity
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.bytes = 0
        self.bound = False
        self.max_bytes: int | None = None
        self.ttl_seconds: float | None = None
        # The digests that keys stood for when they were pinned, one a pin.
        self.pins: dict[bytes, list[str]] = {}

    def identity_read(self) -> CacheIdentity:
        """The identity as a value."""
        fields = json.loads(self.identity)
        return CacheIdentity(**(fields | {"geometry": tuple(fields["geometry"])}))


def key_bytes(key: bytes | str) -> bytes:
    """A key as bytes, such that no text is the same as any bytes."""
    return b"t" + key.encode() if isinstance(key, str) else b"b" + bytes(key)


def _all_bytes(keys: Iterable[bytes | str]) -> list[bytes]:
    """The same for many: a call for each would take as long as all else that is done with it."""
    return [b"b" + key if type(key) is bytes else b"t" + key.encode() if type(key) is str else key_bytes(key) for key in keys]


def engine_key(raw: bytes) -> bytes | str:
    """The key that `key_bytes` made these of."""
    return raw[1:].decode() if raw[:1] == b"t" else raw[1:]


class Recorded(NamedTuple):
    """A namespace as the database has it: raw keys with digests and bytes of their pages, in the order in which they were put."""

    name: str
    identity: CacheIdentity
    pages: list[tuple[bytes, str, int]]


def recorded(path: Path) -> list[Recorded]:
    """The namespaces in a database; nothing is written, and nobody is kept from writing.

    Raises:
        FormatError: It is no such database.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            # One moment of both tables, whatever is written meanwhile.
            database.execute("BEGIN")
            namespaces = {namespace.number: namespace for namespace in _namespaces(database)}
            found = {number: Recorded(each.name, each.identity_read(), []) for number, each in namespaces.items()}
            for number, key, digest, size, _ in _pages(database, namespaces):
                found[number].pages.append((key, digest, size))
            return list(found.values())
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise FormatError(f"{path} is no index of a page cache: {error}", path=path) from error


def _namespaces(database: sqlite3.Connection) -> Iterator[Namespace]:
    for number, name, identity in database.execute("SELECT id, name, identity FROM namespaces"):
        yield Namespace(number, name, identity)


def _pages(database: sqlite3.Connection, namespaces: dict[int, Namespace]) -> Iterator[tuple[int, bytes, str, int, float]]:
    """Rows whose seal fits, the oldest first."""
    rows = database.execute("SELECT namespace, key, digest, bytes, put, seal FROM pages ORDER BY put")
    for number, key, digest, size, put, seal in rows:
        if number in namespaces and seal == _seal(namespaces[number], key, digest, size):
            yield number, key, digest, size, put


class PageIndex:
    """Not for several processes at once; for any number of threads.

    Args:
        path: The database; None keeps all in memory.
    """

    def __init__(self, path: Path | None) -> None:
        # Look-ups never wait for the database: who takes both locks takes this one first.
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self.namespaces: dict[str, Namespace] = {}
        self._references: dict[str, int] = {}
        self.bytes = 0
        # Told of each key that comes, with the bytes of its page, and goes, with less than none; under the lock.
        self.on_change: Callable[[str, bytes, int], None] | None = None
        self._tick = 0
        self._newest = 0
        self._changed: dict[tuple[int, bytes], Entry | None] = {}
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        # Readers do not wait, and a killed process loses no more than its last batch.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)
        self._load()

    def _load(self) -> None:
        numbers = {namespace.number: namespace for namespace in _namespaces(self._database)}
        self.namespaces = {namespace.name: namespace for namespace in numbers.values()}
        self._newest = max(numbers, default=0)
        for number, key, digest, size, put in _pages(self._database, numbers):
            self._set(numbers[number], key, digest, size, put)

    def bind(self, name: str, identity: CacheIdentity, max_bytes: int | None, ttl_seconds: float | None) -> None:
        """Makes a namespace usable; StoreError where it is another identity's."""
        text = json.dumps(asdict(identity), sort_keys=True)
        with self._writing, self._lock:
            namespace = self.namespaces.get(name)
            if namespace is not None and namespace.identity != text:
                known = json.loads(namespace.identity)
                differs = ", ".join(
                    f"{field} {known.get(field)!r} is not {value!r}"
                    for field, value in json.loads(text).items()
                    if known.get(field) != value
                )
                raise StoreError(
                    f"namespace {name!r} holds pages of another identity ({differs}): take another name, or clear it first",
                    code="identity",
                )
            if namespace is None:
                # It is written with its first pages: a disk that is full now may have room by then.
                self._newest += 1
                namespace = self.namespaces[name] = Namespace(self._newest, name, text)
            namespace.bound, namespace.max_bytes, namespace.ttl_seconds = True, max_bytes, ttl_seconds

    def namespace(self, name: str) -> Namespace:
        """A namespace that is bound."""
        namespace = self.namespaces.get(name)
        if namespace is None or not namespace.bound:
            raise StoreError(f"namespace {name!r} is bound to no identity: call bind first", code="identity")
        return namespace

    def find(self, name: str, keys: Iterable[bytes | str], *, leading: bool = False, pin: bool = False) -> list[str | None]:
        """The digest of each key, None for one that is not there or is too old; with `leading`, up to the first of these only.

        With `pin`, those that are there make no room for others until `unpin`.
        """
        found: list[str | None] = []
        raws = _all_bytes(keys)
        with self._lock:
            namespace, tick = self.namespace(name), self._tick
            entries, oldest = namespace.entries, _oldest(namespace)
            look, move, add = entries.get, entries.move_to_end, found.append
            for raw in raws:
                entry = look(raw)
                if entry is not None and entry.put >= oldest:
                    tick += 1
                    entry.used = tick
                    move(raw)
                    add(entry.digest)
                    if pin:
                        namespace.pins.setdefault(raw, []).append(entry.digest)
                elif leading:
                    break
                else:
                    add(None)
            self._tick = tick
        return found

    def unpin(self, name: str, keys: Iterable[bytes | str]) -> list[str]:
        """Takes back a pin of each key; returns the digests that were pinned. Keys without pins do no harm."""
        found = []
        with self._lock:
            namespace = self.namespaces.get(name)
            if namespace is None:
                return []
            for raw in _all_bytes(keys):
                pins = namespace.pins.get(raw)
                if pins:
                    found.append(pins.pop())
                    if not pins:
                        del namespace.pins[raw]
        return found

    def sizes(self, name: str, keys: Iterable[bytes | str]) -> list[int | None]:
        """The bytes of each key's page, however old; None for one that is not there."""
        with self._lock:
            entries = self.namespace(name).entries
            found = [entries.get(raw) for raw in _all_bytes(keys)]
        return [None if entry is None else entry.size for entry in found]

    def keys(self, name: str) -> dict[bytes | str, int]:
        """All keys of a namespace with the bytes of their pages."""
        with self._lock:
            entries = list(self.namespace(name).entries.items())
        return {engine_key(raw): entry.size for raw, entry in entries}

    def identities(self, *, bound: bool = False) -> dict[str, CacheIdentity]:
        """All namespaces, or those that are bound."""
        with self._lock:
            return {name: each.identity_read() for name, each in self.namespaces.items() if each.bound or not bound}

    def put(
        self,
        name: str,
        keys: Sequence[bytes | str],
        digests: Sequence[str],
        sizes: Sequence[int],
        *,
        at: float | None = None,
        replace: bool = True,
    ) -> list[str]:
        """Lets keys stand for pages from now or `at` on; returns the digests that no key stands for any longer.

        Without `replace`, keys that stand for a page already are left.
        """
        raws = _all_bytes(keys)
        with self._lock:
            namespace, gone = self.namespace(name), []
            put, oldest = time.time() if at is None else at, _oldest(namespace)
            entries, changed, number = namespace.entries, self._changed, namespace.number
            for raw, digest, size in zip(raws, digests, sizes, strict=True):
                put += APART
                if raw in entries:
                    if not replace and entries[raw].put >= oldest:
                        continue
                    gone += self._drop(namespace, raw)
                changed[number, raw] = self._set(namespace, raw, digest, size, put)
            while namespace.max_bytes is not None and namespace.bytes > namespace.max_bytes:
                if (first := _first(namespace)) is None:
                    break
                gone += self._drop(namespace, first)
            return [digest for digest in gone if digest not in self._references]

    def drop(self, name: str, keys: Iterable[bytes | str], digest: str | None = None) -> tuple[int, list[str]]:
        """Removes keys (that stand for `digest`, where it is given); returns how many, and digests that no key stands for."""
        with self._lock:
            namespace, gone, count = self.namespace(name), [], 0
            for raw in _all_bytes(keys):
                entry = namespace.entries.get(raw)
                if entry is not None and (digest is None or entry.digest == digest):
                    gone += self._drop(namespace, raw)
                    count += 1
            return count, gone

    def clear(self, name: str) -> list[str]:
        """Removes a namespace with all its keys, bound or not; returns digests that no key stands for any longer."""
        with self._writing:
            with self._lock:
                namespace = self.namespaces.pop(name, None)
                if namespace is None:
                    return []
                gone = [digest for key in list(namespace.entries) for digest in self._drop(namespace, key)]
            self.save()
            self._database.execute("DELETE FROM pages WHERE namespace = ?", (namespace.number,))
            self._database.execute("DELETE FROM namespaces WHERE id = ?", (namespace.number,))
            return gone

    def expire(self) -> list[str]:
        """Removes keys that are too old; returns digests that no key stands for any longer."""
        with self._lock:
            gone = []
            for namespace in self.namespaces.values():
                oldest = _oldest(namespace)
                for key in [key for key, entry in namespace.entries.items() if entry.put < oldest]:
                    gone += self._drop(namespace, key)
            return gone

    def shrink(self, most: int) -> list[str]:
        """Removes the keys that were used longest ago until all pages together take no more; returns digests as the others do."""
        with self._lock:
            gone = []
            while self.bytes > most:
                firsts = [(each, key) for each in self.namespaces.values() if (key := _first(each)) is not None]
                if not firsts:
                    break
                gone += self._drop(*min(firsts, key=lambda first: first[0].entries[first[1]].used))
            return gone

    def refers(self, digest: str) -> bool:
        """Whether any key stands for a page."""
        return digest in self._references

    def unless_referred(self, digests: Sequence[str], remove: Callable[[list[str]], None]) -> None:
        """Has those pages removed that no key stands for; none comes to stand for one meanwhile."""
        with self._lock:
            gone = [digest for digest in digests if digest not in self._references]
            if gone:
                remove(gone)

    def _set(self, namespace: Namespace, key: bytes, digest: str, size: int, put: float) -> Entry:
        self._tick += 1
        entry = namespace.entries[key] = Entry(digest, size, put, self._tick)
        namespace.bytes += size
        count = self._references.get(digest, 0)
        self._references[digest] = count + 1
        if not count:
            self.bytes += size
        if self.on_change is not None:
            self.on_change(namespace.name, key, size)
        return entry

    def _drop(self, namespace: Namespace, key: bytes) -> list[str]:
        entry = namespace.entries.pop(key, None)
        if entry is None:
            return []
        if self.on_change is not None:
            self.on_change(namespace.name, key, -entry.size)
        self._changed[namespace.number, key] = None
        namespace.bytes -= entry.size
        self._references[entry.digest] -= 1
        if self._references[entry.digest]:
            return []
        del self._references[entry.digest]
        self.bytes -= entry.size
        return [entry.digest]

    def save(self) -> None:
        """Writes what has changed to the database, in one transaction."""
        with self._writing:
            with self._lock:
                changed, self._changed = self._changed, {}
                namespaces = {namespace.number: namespace for namespace in self.namespaces.values()}
            gone = [place for place, entry in changed.items() if entry is None]
            put = [
                (number, key, entry.digest, entry.size, entry.put, _seal(namespaces[number], key, entry.digest, entry.size))
                for (number, key), entry in changed.items()
                if entry is not None and number in namespaces
            ]
            try:
                self._database.execute("BEGIN")
                named = [(number, namespace.name, namespace.identity) for number, namespace in namespaces.items()]
                self._database.executemany("INSERT OR IGNORE INTO namespaces VALUES (?, ?, ?)", named)
                self._database.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?)", put)
                self._database.executemany("DELETE FROM pages WHERE namespace = ? AND key = ?", gone)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                # A full disk: the next call writes it all, but what has changed again since.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                with self._lock:
                    self._changed = changed | self._changed
                raise

    def close(self) -> None:
        """Lets go of the database; what was not saved is lost."""
        self._database.close()


def _first(namespace: Namespace) -> bytes | None:
    """The key that was used longest ago; a pinned one stays, but it was used when it was pinned, so few are passed over."""
    return next((key for key in namespace.entries if key not in namespace.pins), None)


def _oldest(namespace: Namespace) -> float:
    return 0.0 if namespace.ttl_seconds is None else time.time() - namespace.ttl_seconds


def _seal(namespace: Namespace, key: bytes, digest: str, size: int) -> bytes:
    text = f"{namespace.name}\n{namespace.identity}\n{digest}\n{size}\n".encode()
    return hashlib.blake2b(text + key, digest_size=8).digest()
