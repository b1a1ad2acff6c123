"""Which key of which namespace stands for which page: the index of a `PageCache`.

All of it is in memory, where a look-up of a key costs less than a microsecond, and in an SQLite database (write-ahead log,
changes in batches), from which it comes back after a restart. What the database says of a page was sealed with its key and
namespace: a row that was damaged is not there.

Namespaces keep their keys in the order of their last use; pages that several keys stand for are counted once. Times of use do not
outlive the process: after a restart, keys are as old as when they were put.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pfimg.errors import StoreError

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


def key_bytes(key: bytes | str) -> bytes:
    """A key as bytes, such that no text is the same as any bytes."""
    return b"t" + key.encode() if isinstance(key, str) else b"b" + bytes(key)


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
        self._tick = 0
        self._changed: dict[tuple[int, bytes], Entry | None] = {}
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        # Readers do not wait, and a killed process loses no more than its last batch.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)
        self._load()

    def _load(self) -> None:
        names = {}
        for number, name, identity in self._database.execute("SELECT id, name, identity FROM namespaces"):
            names[number] = self.namespaces[name] = Namespace(number, name, identity)
        rows = self._database.execute("SELECT namespace, key, digest, bytes, put, seal FROM pages ORDER BY put")
        for number, key, digest, size, put, seal in rows:
            if number in names and seal == _seal(names[number], key, digest, size):
                self._set(names[number], key, digest, size, put)

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
                insert = "INSERT INTO namespaces (name, identity) VALUES (?, ?) RETURNING id"
                ((number,),) = self._database.execute(insert, (name, text)).fetchall()
                namespace = self.namespaces[name] = Namespace(number, name, text)
            namespace.bound, namespace.max_bytes, namespace.ttl_seconds = True, max_bytes, ttl_seconds

    def namespace(self, name: str) -> Namespace:
        """A namespace that is bound."""
        namespace = self.namespaces.get(name)
        if namespace is None or not namespace.bound:
            raise StoreError(f"namespace {name!r} is bound to no identity: call bind first", code="identity")
        return namespace

    def find(self, name: str, keys: Iterable[bytes | str], *, leading: bool = False) -> list[str | None]:
        """The digest of each key, None for one that is not there or is too old; with `leading`, up to the first of these only."""
        found: list[str | None] = []
        with self._lock:
            namespace = self.namespace(name)
            entries, oldest = namespace.entries, _oldest(namespace)
            for key in keys:
                entry = entries.get(raw := key_bytes(key))
                if entry is not None and entry.put >= oldest:
                    self._tick += 1
                    entry.used = self._tick
                    entries.move_to_end(raw)
                    found.append(entry.digest)
                elif leading:
                    break
                else:
                    found.append(None)
        return found

    def put(self, name: str, keys: Sequence[bytes | str], digests: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Lets keys stand for pages; returns the digests that no key stands for any longer."""
        with self._lock:
            namespace, gone, now = self.namespace(name), [], time.time()
            for key, digest, size in zip(keys, digests, sizes, strict=True):
                raw = key_bytes(key)
                gone += self._drop(namespace, raw)
                self._changed[namespace.number, raw] = self._set(namespace, raw, digest, size, now)
            while namespace.max_bytes is not None and namespace.bytes > namespace.max_bytes:
                gone += self._drop(namespace, next(iter(namespace.entries)))
            return [digest for digest in gone if digest not in self._references]

    def drop(self, name: str, keys: Iterable[bytes | str], digest: str | None = None) -> tuple[int, list[str]]:
        """Removes keys (that stand for `digest`, where it is given); returns how many, and digests that no key stands for."""
        with self._lock:
            namespace, gone, count = self.namespace(name), [], 0
            for key in keys:
                entry = namespace.entries.get(raw := key_bytes(key))
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
                oldest = min((each for each in self.namespaces.values() if each.entries), key=lambda each: _first(each).used)
                gone += self._drop(oldest, next(iter(oldest.entries)))
            return gone

    def refers(self, digest: str) -> bool:
        """Whether any key stands for a page."""
        return digest in self._references

    def _set(self, namespace: Namespace, key: bytes, digest: str, size: int, put: float) -> Entry:
        self._tick += 1
        entry = namespace.entries[key] = Entry(digest, size, put, self._tick)
        namespace.bytes += size
        count = self._references.get(digest, 0)
        self._references[digest] = count + 1
        self.bytes += 0 if count else size
        return entry

    def _drop(self, namespace: Namespace, key: bytes) -> list[str]:
        entry = namespace.entries.pop(key, None)
        if entry is None:
            return []
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
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?)", put)
            self._database.executemany("DELETE FROM pages WHERE namespace = ? AND key = ?", gone)
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Lets go of the database; what was not saved is lost."""
        self._database.close()


def _first(namespace: Namespace) -> Entry:
    return next(iter(namespace.entries.values()))


def _oldest(namespace: Namespace) -> float:
    return 0.0 if namespace.ttl_seconds is None else time.time() - namespace.ttl_seconds


def _seal(namespace: Namespace, key: bytes, digest: str, size: int) -> bytes:
    text = f"{namespace.name}\n{namespace.identity}\n{digest}\n{size}\n".encode()
    return hashlib.blake2b(text + key, digest_size=8).digest()
