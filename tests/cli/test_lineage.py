"""The graph of `pfimg ls`."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pfimg.cli.lineage import Node, graph, order

Family = list[tuple[str, ...]]  # an image and its parents, oldest first


def nodes(family: Family) -> dict[str, Node]:
    return {id: Node(id, f"2026-01-01T00:00:{at:02}Z", tuple(parents)) for at, (id, *parents) in enumerate(family)}


def drawing(family: Family) -> list[str]:
    return [f"{row} {node.id if node else ''}".rstrip() for row, node in graph(order(nodes(family)))]


def test_a_line() -> None:
    assert drawing([("a",), ("b", "a"), ("c", "b")]) == ["* c", "* b", "o a"]


def test_a_fork() -> None:
    assert drawing([("a",), ("b", "a"), ("c", "a"), ("d", "a")]) == ["* d", "| * c", "| | * b", "|_|/", "|/", "o a"]


def test_a_merge() -> None:
    family: Family = [("a",), ("b", "a"), ("c", "a"), ("d", "b", "c")]
    assert drawing(family) == ["* d", "|\\", "| * c", "* | b", "|/", "o a"]


def test_strangers_share_a_column_only_after_an_end() -> None:
    assert drawing([("a",), ("x",), ("b", "a")]) == ["* b", "| o x", "o a"]
    assert drawing([("a",), ("b", "a"), ("x",)]) == ["o x", "* b", "o a"]


def test_an_absent_parent_ends_the_line() -> None:
    assert drawing([("a", "gone"), ("b", "a")]) == ["* b", "o a"]


def test_fractions_of_seconds_are_in_order() -> None:
    times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.50001Z", "2026-01-01T00:00:01Z"]
    made = {time: Node(time, time, ()) for time in times}
    assert [node.id for node in order(made)] == times[::-1]


@st.composite
def families(draw: st.DrawFn) -> Family:
    count = draw(st.integers(0, 12))
    names = [f"i{at}" for at in range(count)]
    return [
        (name, *draw(st.lists(st.sampled_from([*names[:at], "gone"]), max_size=2, unique=True))) for at, name in enumerate(names)
    ]


@given(families(), st.randoms())
def test_every_image_stands_once_and_above_its_parents(family: Family, random: Random) -> None:
    made = nodes(family)
    times = [node.created_at for node in made.values()]
    random.shuffle(times)  # clocks may lie
    made = {id: node._replace(created_at=time) for (id, node), time in zip(made.items(), times, strict=True)}
    rows = [node.id for _, node in graph(order(made)) if node]
    assert sorted(rows) == sorted(made)
    for node in made.values():
        assert all(rows.index(node.id) < rows.index(parent) for parent in node.parents if parent in made)


@given(families())
def test_lines_of_the_drawing_lead_to_the_parents(family: Family) -> None:
    """Followed from row to row, the strokes below an image end at its parents, and nowhere else."""
    made = nodes(family)
    rows = list(graph(order(made)))
    for at, (row, node) in enumerate(rows):
        if node:
            column = next(i for i, cell in enumerate(row) if cell in "*o")
            ends = follow([row for row, _ in rows[at + 1 :]], column, starts=row[column] == "*")
            here = {rows[at + 1 + end][1] for end in ends}
            assert {end.id for end in here if end} == {parent for parent in node.parents if parent in made}


def follow(rows: list[str], column: int, *, starts: bool) -> set[int]:
    """Indices of the rows at which the lines that leave `column` downwards end."""
    if not starts:
        return set()
    ends: set[int] = set()
    open_columns = {column}
    for at, row in enumerate(rows):
        cells = row.ljust(2 * len(rows) + 4)
        if "\\" in row and at == 0:
            open_columns |= {row.index("\\") + 1}
        elif "/" in row:
            start, end = row.index("/") + 1, next(i for i, cell in enumerate(row) if cell in "_/") - 1
            open_columns = {end if c == start else c for c in open_columns}
        for c in list(open_columns):
            if cells[c] in "*o":
                ends.add(at)
                open_columns.discard(c)
            assert cells[c] in "*o|" or "\\" in row, (rows, at, c)
    assert not open_columns
    return ends
