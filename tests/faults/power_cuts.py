"""What a disk may hold after a power cut, given what a process did: the states that its syncs allow.

The model is the weakest that POSIX permits. Until a file is synced its data may be what it was, nothing, as many zeros, a part
of it, or all that was written. Until a directory is synced each change of its entries (a new name, a rename, a removal) may or
may not have happened, in any combination; a rename happens in both of its directories or in neither. A sync of a file system
settles all. A directory whose own name was not synced is gone with all below it.

Real file systems promise more: journals keep the order. So what holds here holds there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.faults.tracing import Event


@dataclass(eq=False)
class _Node:
    """A file, directory or link.

    Attributes:
        names: Entries of a directory, as a process sees them.
        data: A file's content, as a process sees it; where a link leads.
        kept: A file's content as it was when it was synced last.
        dirty: Whether there is more than that.
    """

    kind: str
    names: dict[str, _Node] = field(default_factory=dict)
    data: bytes = b""
    kept: bytes = b""
    dirty: bool = False


@dataclass(eq=False)
class _Change:
    """A change of entries, which happens as a whole: of each directory, a name and what it is for now."""

    entries: list[tuple[_Node, str, _Node | None]]
    settled: bool = False


State = frozenset[tuple[str, str, bytes]]
"""What a disk holds: of each name the kind and content."""


class Disk:
    """Follows what a process does, from what is there already, which is settled."""

    def __init__(self, root: Path) -> None:
        self._base = str(root)
        self._root = _Node("directory")
        self._changes: list[_Change] = []
        self._take(root, self._root)

    def _take(self, path: Path, node: _Node) -> None:
        for entry in sorted(path.iterdir()):
            if entry.is_symlink():
                child = _Node("link", data=str(entry.readlink()).encode())
            elif entry.is_dir():
                child = _Node("directory")
                self._take(entry, child)
            else:
                content = entry.read_bytes()
                child = _Node("file", data=content, kept=content)
            node.names[entry.name] = child
            self._changes.append(_Change([(node, entry.name, child)], settled=True))

    def follow(self, event: Event) -> None:
        """Does what the process did."""
        match event.call:
            case "create" | "mkdir" | "symlink":
                kind = {"create": "file", "mkdir": "directory", "symlink": "link"}[event.call]
                self._change((event.path, _Node(kind, data=event.other.encode())))
            case "write":
                node = self._find(event.path)
                node.data = (
                    node.data[: event.offset].ljust(event.offset, b"\0")
                    + event.data
                    + node.data[event.offset + len(event.data) :]
                )
                node.dirty = True
            case "truncate":
                node = self._find(event.path)
                node.data = node.data[: event.offset].ljust(event.offset, b"\0")
                node.dirty = True
            case "rename":
                self._change((event.path, None), (event.other, self._find(event.path)))
            case "link":
                self._change((event.other, self._find(event.path)))
            case "unlink":
                self._change((event.path, None))
            case "sync":
                self._settle([self._find(event.path)])
            case "syncfs":
                self._settle(self._all(self._root))

    def _change(self, *entries: tuple[str, _Node | None]) -> None:
        change = _Change([])
        for path, node in entries:
            above, _, name = path.rpartition("/")
            directory = self._find(above)
            change.entries.append((directory, name, node))
            if node is None:
                directory.names.pop(name, None)
            else:
                directory.names[name] = node
        self._changes.append(change)

    def _find(self, path: str) -> _Node:
        node = self._root
        for name in path.removeprefix(self._base).strip("/").split("/"):
            node = node.names[name] if name else node
        return node

    def _all(self, node: _Node) -> Iterator[_Node]:
        yield node
        for child in node.names.values():
            yield from self._all(child)

    def _settle(self, nodes: Iterable[_Node]) -> None:
        for node in list(nodes):
            node.kept, node.dirty = node.data, False
            for change in self._changes:
                change.settled |= any(directory is node for directory, _, _ in change.entries)

    def state(self, chance: random.Random, names: float, data: str | None = None) -> State:
        """One of the states that a cut at this moment may leave.

        Args:
            chance: Chooses.
            names: How likely a change of names that was not synced has happened.
            data: What becomes of data that was not synced; None lets chance decide for each file.
        """
        entries: dict[_Node, dict[str, _Node]] = {}
        for change in self._changes:
            if change.settled or chance.random() < names:
                for directory, name, node in change.entries:
                    if node is None:
                        entries.setdefault(directory, {}).pop(name, None)
                    else:
                        entries.setdefault(directory, {})[name] = node
        contents: dict[_Node, bytes] = {}

        def content(node: _Node) -> bytes:
            if node.kind == "file" and node.dirty and node not in contents:
                torn = node.data[: len(node.data) // 2]
                choices = {"old": node.kept, "empty": b"", "zeros": bytes(len(node.data)), "torn": torn, "new": node.data}
                contents[node] = choices[data or chance.choice(sorted(choices))]
            return contents.get(node, node.data)

        def walk(node: _Node, above: str) -> Iterator[tuple[str, str, bytes]]:
            for name, child in entries.get(node, {}).items():
                yield above + name, child.kind, content(child)
                yield from walk(child, f"{above}{name}/")

        return frozenset(walk(self._root, ""))


def write(state: State, root: Path) -> None:
    """Makes a state real, below a directory that is empty."""
    for name, kind, content in sorted(state):
        path = root / name
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(content.decode())
        else:
            path.write_bytes(content)
