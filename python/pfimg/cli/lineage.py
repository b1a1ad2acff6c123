"""The graph of images and their parents, drawn as `git log --graph` does it, but simpler.

Children stand above their parents, newest first. Each column is a line of descent waiting for its next image; a column ends where
its parent is not in the store.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """What the graph needs of an image."""

    id: str
    created_at: str
    parents: tuple[str, ...]


def order(nodes: Mapping[str, Node]) -> list[Node]:
    """Newest first, but never a parent before one of its children (clocks may lie)."""
    waiting = dict.fromkeys(nodes, 0)
    for node in nodes.values():
        for parent in set(node.parents) & nodes.keys():
            waiting[parent] += 1
    ready = [_newest_first(nodes[id]) for id, children in waiting.items() if not children]
    heapq.heapify(ready)
    done = []
    while ready:
        node = nodes[heapq.heappop(ready)[-1]]
        done.append(node)
        for parent in set(node.parents) & nodes.keys():
            waiting[parent] -= 1
            if not waiting[parent]:
                heapq.heappush(ready, _newest_first(nodes[parent]))
    return done


def _newest_first(node: Node) -> tuple[list[int], str]:
    # RFC 3339 text in UTC sorts by time once the final Z is gone (`…56Z` would come after `…56.5Z`). Negated: newest first.
    return [-ord(letter) for letter in node.created_at.removesuffix("Z")] + [0], node.id


def graph(nodes: Sequence[Node]) -> Iterator[tuple[str, Node | None]]:
    """Rows of the drawing for nodes in `order`: the graph, and the image that stands there (None on a line that only connects).

    `*` is an image with a parent below, `o` one without. A column never moves while it is in use, so that no line needs bending.
    """
    known = {node.id for node in nodes}
    columns: list[str | None] = []  # the image each column waits for
    for node in nodes:
        at = _place(columns, node.id, 0)
        # Other columns that wait for the same image meet in its own, one a line.
        for other in range(len(columns) - 1, at, -1):
            if columns[other] == node.id:
                yield _join(columns, at, other, "_", "/"), None
                columns[other] = None
        parents = [parent for parent in node.parents if parent in known]
        yield _cells(columns, at, "*" if parents else "o"), node
        columns[at] = parents[0] if parents else None
        for parent in parents[1:]:
            other = _place(columns, None, at + 1)
            columns[other] = parent
            yield _join(columns, at, other, "-", "\\"), None


def _place(columns: list[str | None], wanted: str | None, start: int) -> int:
    """The first column from `start` on that waits for `wanted`, else the first free one, which then waits for it."""
    for candidate in (wanted, None):
        if candidate in columns[start:]:
            at = columns.index(candidate, start)
            break
    else:
        at = len(columns)
        columns.append(None)
    columns[at] = wanted
    return at


def _cells(columns: Sequence[str | None], at: int, mark: str) -> str:
    return " ".join(mark if i == at else "|" if waits else " " for i, waits in enumerate(columns)).rstrip()


def _join(columns: Sequence[str | None], at: int, other: int, line: str, stroke: str) -> str:
    """The row in which column `other` leaves from, or ends in, column `at` to its left."""
    row = list(_cells(columns, -1, ""))
    row[2 * at + 1 : 2 * other] = [line if cell == " " else cell for cell in row[2 * at + 1 : 2 * other]]
    row[2 * other - 1 : 2 * other + 1] = stroke, " "
    return "".join(row).rstrip()
