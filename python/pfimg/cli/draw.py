"""The picture of an image that `pfimg show` prints: layers with sizes, the sequences over the page table, the biggest files."""

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from pfimg.types import Changes, ImageDiff, human_size

from .contents import Block, Cache, Contents, Tree
from .ids import short
from .units import plural, visible

if TYPE_CHECKING:
    from rich.tree import Tree as Branch

_BAR = 20  # cells
_STRIP = 48  # cells
_SEQUENCES = 8  # the ones that are drawn


def picture(contents: Contents) -> str:
    """The drawing as text, with colours if stdout is a terminal that wants them."""
    from rich.text import Text  # a person waits for this import, scripts with --json do not
    from rich.tree import Tree as Branch

    manifest, sizes = contents.manifest, contents.sizes()
    total = sum(sizes.values())
    root = Branch(Text.assemble("image ", (contents.image, "bold"), "  partial" if contents.partial else ""), guide_style="dim")

    def row(parent: Branch, name: str, text: str, style: str = "cyan") -> Branch:
        return parent.add(Text.assemble((f"{name:<9}", style), visible(text)))

    def layer(name: str, text: str) -> Branch:
        return row(root, name, f"{human_size(sizes[name]):>9}  {_bar(sizes[name], total)}  {text}", "bold cyan")

    row(root, "agent", " ".join(filter(None, [manifest.agent.kind, manifest.agent.version, manifest.agent.fingerprint])))
    row(root, "created", manifest.created_at.replace("T", " ").replace("Z", " UTC"))
    row(root, "parents", ", ".join(map(short, manifest.parents)) or "none")
    layer("model", _model(contents))
    cache = layer("cache", _cache(contents))
    if contents.cache and contents.cache.pages:
        row(cache, "page", _page(contents.cache))
        names = [visible(block.id) for block in contents.cache.blocks[:_SEQUENCES]]
        for name, block in zip(names, contents.cache.blocks, strict=False):
            strip = _strip(block, contents.cache.pages)
            cache.add(Text.assemble((f"{name:<{max(map(len, names))}}", "green"), f"  {strip}  {_sequence(block)}"))
        if (more := len(contents.cache.blocks) - _SEQUENCES) > 0:
            cache.add(f"and {plural(more, 'more sequence')}")
    world = layer("world", _tree(contents.tree) if contents.tree else _unread(contents, "world.fs"))
    for path, size in contents.tree.biggest if contents.tree else []:
        world.add(Text.assemble((f"{human_size(size):>9}", "dim"), f"  {visible(path)}"))
    row(world, "env", _env(contents))
    row(world, "procs", contents.procs or _unread(contents, "world.procs"))
    layer("effects", _counted(contents.effects, "entry"))
    layer("trace", _counted(contents.messages, "message"))
    return _render(root)


def _render(root: "Branch") -> str:
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(root, soft_wrap=True)
    return captured.get().rstrip("\n")


def _bar(part: int, total: int) -> str:
    cells = round(_BAR * part / total) if total else 0
    return "█" * cells + "░" * (_BAR - cells)


def _unread(contents: Contents, name: str) -> str:
    size = contents.blobs[name]
    return "not here" if size is None else f"opaque, {human_size(size)}"


def _counted(count: int | None, noun: str) -> str:
    return "not here" if count is None else plural(count, noun)


def _model(contents: Contents) -> str:
    base = contents.base or _unread(contents, "model.base")
    adapters = _unread(contents, "model.diff") if contents.adapters is None else plural(contents.adapters, "adapter")
    return f"base {base}, {adapters}"


def _cache(contents: Contents) -> str:
    cache = contents.cache
    if cache is None:
        return _unread(contents, "cache.manifest")
    if not cache.pages:
        return "no pages"
    equal = 2 * cache.pages - cache.blobs
    same = f", {equal:,} of them equal to another" if equal else ""
    return f"{plural(cache.pages, 'page')} ({2 * cache.pages:,} blobs of K or V{same}), {plural(len(cache.blocks), 'sequence')}"


def _page(cache: Cache) -> str:
    meta = cache.meta
    shape = f"{meta.n_layers} layers × {meta.page_size_tokens} tokens × {meta.n_heads} heads × {meta.head_dim} × {meta.dtype}"
    return f"{shape} = {human_size(meta.page_bytes)} each of K and V"


def _sequence(block: Block) -> str:
    shared = f", {len(block.shared):,} shared" if block.shared else ""
    return f"{plural(len(block.positions), 'page')}{shared}, {plural(block.tokens, 'token')}"


def _strip(block: Block, pages: int) -> str:
    """The page table as a row of cells: `█` this sequence's pages, `▒` also another's, `·` not in it."""
    width = min(pages, _STRIP)
    cells = ["·"] * width
    for mark, positions in (("█", block.positions), ("▒", block.shared)):
        for position in positions:
            cells[position * width // pages] = mark
    return "".join(cells)


def _tree(tree: Tree) -> str:
    others = ((tree.directories, "directory"), (tree.links, "link"))
    return ", ".join([plural(tree.files, "file"), *(plural(count, noun) for count, noun in others if count)])


def _env(contents: Contents) -> str:
    if contents.env is None or not isinstance(variables := contents.env.get("vars"), dict):
        return _unread(contents, "world.env")
    redacted = sum(value == "<redacted>" for value in variables.values())
    return f"{plural(len(variables), 'variable')}, {redacted:,} redacted; directory {contents.env.get('cwd', '?')}"


def _ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Sorted numbers, those that follow one another as one: `3`, `7-9`."""
    for _, group in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def changes(diff: ImageDiff) -> str:
    """A difference as lines: `+` what B added, `-` what it removed, `~` what it changed."""
    pages = Changes(*(tuple(_ranges(ixs)) for ixs in (diff.pages.added, diff.pages.removed, diff.pages.changed)))
    lines = []
    for noun, found in (("file", diff.files), ("page", pages), ("sequence", diff.sequences)):
        for mark, names in (("+", found.added), ("-", found.removed), ("~", found.changed)):
            lines += [f"{mark} {noun:<8}  {visible(name)}" for name in names]
    # Only what the lines above do not tell already.
    told = {"world.fs"} if diff.files else set()
    told |= {"cache.manifest"} if diff.pages or diff.sequences else set()
    lines += [f"~ {'layer':<8}  {name}" for name in diff.layers if name not in told]
    return "\n".join(lines) or "no difference"
