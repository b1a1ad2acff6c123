"""Repositories: files by path, commits, branches and tags.

Ids are git's own where git can be asked: a file's is that of its blob (of the LFS pointer, for a file in LFS), a folder's that of
its tree. Of a commit only the uniqueness matters, so its id is made without a tree: hashing all of a large one at each commit
would be most of the work. Nothing is ever removed but branches and tags: a commit stays readable by its id.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pathspec import GitIgnoreSpec
from tests.hub.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.hub.limits import Limits

# What a new repository says of file names; the real list is longer.
ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("7z", "arrow", "bin", "gz", "npy", "npz", "parquet", "pt", "safetensors", "tar", "xz", "zip", "zst")
).encode()


def git_id(kind: str, content: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(content), content), usedforsecurity=False).digest()


@dataclass(frozen=True)
class File:
    """A regular file has its content; one in LFS the digest of it."""

    size: int
    content: bytes | None = None
    sha256: str = ""

    @cached_property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_id("blob", self.pointer if self.content is None else self.content).hex()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Entry:
    """What a listing shows: a file, or a folder where `file` is None."""

    path: str
    oid: str
    file: File | None


@dataclass(frozen=True, eq=False)
class Commit:
    id: str
    parent: Commit | None
    title: str
    message: str
    user: str
    date: datetime
    files: Mapping[str, File] = field(repr=False)

    def log(self) -> Iterator[Commit]:
        """This commit and all before it, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All files and folders, by path and in its order."""
        root: dict[str, Any] = {}
        for path, file in self.files.items():
            *folders, name = path.split("/")
            node = root
            for folder in folders:
                node = node.setdefault(folder, {})
            node[name] = file
        entries: dict[str, Entry] = {}
        _add_entries("", root, entries)
        return {path: entries[path] for path in sorted(entries)}

    def last_change(self, path: str) -> Commit:
        """The commit that made a file or folder what it is here."""
        oid = self.entries[path].oid
        last = self
        for commit in self.log():
            if path not in commit.entries or commit.entries[path].oid != oid:
                break
            last = commit
        return last

    def lines(self, path: str) -> list[str]:
        """Of a regular file; none if there is no such file."""
        file = self.files.get(path)
        return file.content.decode().splitlines() if file and file.content else []

    @cached_property
    def _lfs_names(self) -> GitIgnoreSpec:
        """What `.gitattributes` sends to LFS. Its patterns are near enough to those of ignore files: in both the last wins."""
        rules = []
        for pattern, *attributes in (line.split() for line in self.lines(".gitattributes") if line.strip()):
            named = [attribute for attribute in attributes if re.match(r"[-!]?filter\b", attribute)]
            rules += [pattern if attribute == "filter=lfs" else f"!{pattern}" for attribute in named]
        return GitIgnoreSpec.from_lines(rules)

    def upload_mode(self, path: str, size: int, sample: bytes, limits: Limits) -> str:
        """Where a new file belongs: by its name, by its size, and by how it begins."""
        large = size > limits.regular_bytes or is_binary(sample) or self._lfs_names.match_file(path)
        return "lfs" if large else "regular"


def _add_entries(prefix: str, node: dict[str, Any], entries: dict[str, Entry]) -> bytes:
    """Adds what is below a folder; gives the folder's id, for which git sorts names bytewise, those of folders with a slash."""
    tree = []
    for name, below in node.items():
        path = prefix + name
        if isinstance(below, File):
            entries[path] = Entry(path, below.oid, below)
            tree.append((name.encode(), b"100644", bytes.fromhex(below.oid)))
        else:
            oid = _add_entries(f"{path}/", below, entries)
            entries[path] = Entry(path, oid.hex(), None)
            tree.append((name.encode() + b"/", b"40000", oid))
    return git_id("tree", b"".join(b"%s %s\0%s" % (mode, name.removesuffix(b"/"), oid) for name, mode, oid in sorted(tree)))


def is_binary(sample: bytes) -> bool:
    """Whether the beginning of a file is no text; a character that the end of the sample has cut does not count."""
    try:
        return "\0" in codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True


class Repo:
    def __init__(self, kind: str, owner: str, name: str, *, private: bool) -> None:
        self.kind = kind  # "models", "datasets" or "spaces"
        self.owner = owner
        self.name = name
        self.private = private
        self.created = datetime.now(UTC)
        self.objects: set[str] = set()  # what was uploaded to LFS for this repository
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        self.add("main", {".gitattributes": File(len(ATTRIBUTES), ATTRIBUTES)}, "initial commit", "", owner)

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def resolve(self, revision: str) -> Commit:
        """By branch, tag or full commit id."""
        for place in (self.branches, self.tags, self.commits):
            if revision in place:
                return place[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def head(self, branch: str) -> Commit:
        if branch not in self.branches and (branch in self.tags or branch in self.commits):
            raise Refusal(400, f"{branch}: not a branch, so nothing can be committed to it")
        return self.resolve(branch)

    def add(self, branch: str, files: Mapping[str, File], title: str, message: str, user: str) -> Commit:
        parent = self.branches.get(branch)
        text = f"{self.kind}/{self.id}\0{len(self.commits)}\0{parent and parent.id}\0{title}\0{message}"
        oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        commit = Commit(oid, parent, title, message, user, datetime.now(UTC), files)
        self.commits[commit.id] = self.branches[branch] = commit
        return commit


def check_path(path: Any) -> str:
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise Refusal(400, f"{path!r}: not a path of a file in a repository")
    return str(path)


def check_folders(files: Iterable[str], limits: Limits) -> None:
    """No folder is also a file, and none has too many entries."""
    children: dict[str, set[str]] = defaultdict(set)
    names = set(files)
    for path in names:
        folder, name = path, ""
        while folder:
            folder, _, name = folder.rpartition("/")
            if name in children[folder]:
                break  # so have been all above it
            children[folder].add(name)
    if both := children.keys() & names:
        raise Refusal(400, f"{min(both)}: a folder cannot have the path of a file")
    if full := [folder for folder, below in children.items() if len(below) > limits.folder_entries]:
        raise Refusal(400, f"too many files per directory: /{min(full)} would have more than {limits.folder_entries}")
