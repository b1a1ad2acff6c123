"""The transport for a dataset repository, in the tree layout.

A repository is one of git: its branches move by commits, each of which is done or not. So contents are uploaded first, where
nobody sees them; commits then refer to them, and the last one brings manifest, signature and description too, so that an image
appears whole and at once. Where there are very many blobs, earlier commits take some of them; how many, the Hub's pace decides.

A commit names its parent, so that it fails where somebody else's has come in between. Then, and where an answer is lost, it is
looked what is there now: all of it, so that nothing is left to do; or it is done again upon the new head, unless something has
been taken away that the image needs. A pull reads one commit, whatever is pushed meanwhile.

A push that is killed leaves what it has uploaded, which the Hub may forget, and what it has committed; neither shows an image,
and the next push sends neither again. A branch that a push creates begins where the repository did, without later images.

Limits: contents are never removed here: earlier commits have them. Where a repository began with an image (its history may have
been squashed), a new branch shows that for the moment between the branch and its first commit.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from hashlib import sha1, sha256
from itertools import islice
from pathlib import Path
from typing import Final

from huggingface_hub import CommitOperationAdd

from pfimg._core import PackIndex
from pfimg.errors import BackendError, BadRef, BlobNotFound
from pfimg.registries.base import Expectation, Pack, Range, Sink, StoredBlob, Traffic, blob_name
from pfimg.registries.hf.access import Access
from pfimg.registries.hf.failures import ABSENT
from pfimg.registries.hf.repository import BATCH, PATHS, STALL_SECONDS, Entry, Repository, Upload
from pfimg.registries.refs import AnyRef, HfRef
from pfimg.registries.retries import Failure
from pfimg.registries.tree import (
    DESCRIPTION,
    MANIFEST,
    NAMED,
    PACKS,
    ListedTree,
    check_algorithm,
    index_name,
    pack_name,
    packs_among,
    to_json,
)
from pfimg.registries.workers import LARGE_BYTES, Workers
from pfimg.types import Buffer

_MAIN: Final = "main"
# So much is asked about and uploaded together.
_GROUP_BYTES: Final = 32 << 20
# Files of one commit, which grow and shrink by how long one takes.
_FIRST_PACE: Final = 250
_LEAST_PACE: Final = 20
_MOST_PACE: Final = 1000
_SLOW_SECONDS: Final = 40.0
# Times that a commit is tried which others forestall, or which fails.
_TRIES: Final = 30
_FAILURES: Final = 6
_CONFLICTS: Final = (409, 412)
_TOO_LARGE: Final = 413


class HfTransport(ListedTree):
    """The transport for a dataset repository.

    Args:
        ref: Which, and which branch, tag or revision of it.
        token: See HfRegistry; likewise those that follow.
        endpoint: Of the Hub.
        public: Whether a repository that is created may be read by everybody.
        jobs: Requests at once.
    """

    pack_bytes = 32 << 20
    # An image of so many blobs takes a pull well within the window of requests that the Hub grants to readers.
    packs_above = 1000

    def __init__(
        self, ref: HfRef, *, token: str | None = None, endpoint: str | None = None, public: bool = False, jobs: int | None = None
    ) -> None:
        self.traffic = Traffic()
        self._ref = ref
        self._public = public
        self._access = Access.of(endpoint=endpoint, token=token)
        self._repository = Repository(f"{ref.user}/{ref.repo}", self._access, self.traffic)
        self._workers = Workers(jobs, self.traffic, str(ref), self._repository.stop, stall=STALL_SECONDS)
        self._head: str | None = None  # the commit that is read, or that the next one follows
        self._documents: dict[str, bytes | None] = {}  # of that commit
        self._absent = ""  # what is not there, by its code
        self._ready = False
        self._pace = _FIRST_PACE
        self._pending: dict[str, CommitOperationAdd] = {}  # uploaded, and in no commit yet
        self._needed: set[str] = set()  # files that are there, and that the image needs
        self._features: list[str] = []
        self._check_head: Callable[[], None] = lambda: None  # raises where an image must not go upon the head

    @property
    def read_only(self) -> str | None:
        """See Transport: a revision is for reading."""
        return "a revision is for reading; name a branch, as in hf://user/repo:branch" if self._ref.revision else None

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport. An empty file counts as absent."""
        wanted = {blob_name(digest): digest for digest in digests}
        self._look()
        if self._head is None:
            self._needed = set()
            return set(digests)
        check_algorithm(digests, self.description()["digest"], str(self._ref), "repository")
        self._needed = self._present(wanted.keys())
        return {digest for name, digest in wanted.items() if name not in self._needed and name not in self._pending}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport: the Hub has them when it returns; those that no commit refers to yet, the one that publishes will."""
        self._send(({blob_name(item.digest): item.path or item.read() for item in group}, group) for group in _groups(items))

    def send_packs(self, packs: Iterable[Pack]) -> None:
        """See PackTransport."""
        self._send(({pack_name(pack.name): pack.content, index_name(pack.name): pack.index.to_bytes()}, pack) for pack in packs)

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        head = self._found_head()

        def get(digest: str, path: Path) -> bytes | Path:
            content = self._repository.fetch(head, blob_name(digest), path, LARGE_BYTES)
            if not content and self.has_floats:
                content = self._repository.fetch(head, blob_name(digest, ".fpl"), path, LARGE_BYTES)
            if not content:
                raise BlobNotFound(f"blob {digest} is not in {self._ref}: push the image again", digest=digest)
            return content

        self._workers.fetch(digests, get, sink)

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        """See PackTransport."""
        head = self._found_head()

        def get(part: Range) -> Buffer:
            content = self._repository.fetch_range(head, pack_name(part.pack), part.offset, part.length)
            if content is None:
                where = self.show(pack_name(part.pack))
                raise BlobNotFound(f"pack {where} is not there: push the image again", path=where)
            return content

        self._workers.fetch_ranges(ranges, get, deliver)

    def packs_here(self, ref: AnyRef, digests: Sequence[str]) -> PackIndex:
        """See PackTransport."""
        self._look()
        return PackIndex.join([]) if self._head is None else super().packs_here(ref, digests)

    def publish_packed(self, ref: AnyRef, manifest: bytes, signature: bytes, packs: PackIndex) -> AnyRef:
        """See PackTransport."""
        names = [name for name, _, _ in packs.packs]
        self._needed = {*map(pack_name, names), *map(index_name, names)} - self._pending.keys()
        return super().publish_packed(ref, manifest, signature, packs)

    def images(self) -> Sequence[AnyRef]:
        """See Lister: those of this revision, then those of the other branches and of the tags."""
        self._look()
        if self._absent == "no_repo":
            return []
        branches, tags = self._repository.refs()
        own = self._ref.revision or self._ref.tag
        others = {name: commit for name, commit in {**tags, **branches}.items() if name != own}
        places = [HfRef(self._ref.user, self._ref.repo, name) for name in sorted(others)]
        commits = [others[place.tag] for place in places]
        if self._head is not None:
            here = HfRef(self._ref.user, self._ref.repo, self._ref.tag, self._ref.revision)
            places, commits = [here, *places], [self._head, *commits]
        found = dict(self._workers.map(self._names_of, dict.fromkeys(commits)))
        return [
            HfRef(place.user, place.repo, place.tag, place.revision, name)
            for place, commit in zip(places, commits, strict=True)
            for name in found[commit]
        ]

    def read_object(self, name: str, limit: int) -> bytes | None:
        """See TreeTransport. What has been read of a commit does not change."""
        if self._absent:  # it is to be made, with nothing in it
            return None
        head = self._found_head()
        if name not in self._documents:
            self._documents[name] = self._repository.read(head, name, limit)
        return self._documents[name]

    def read_objects(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """See TreeTransport."""
        head = self._found_head()
        found = dict(self._workers.map(lambda name: self._repository.read(head, name, limit), names))
        return [found[name] for name in names]

    def replace_objects(self, objects: Mapping[str, bytes]) -> None:
        """See TreeTransport: all of them at once, with the last of what has been uploaded."""
        self._prepare()
        while not self._commit(objects):
            pass

    def expect(self, ref: AnyRef, expected: Expectation) -> None:
        """See Comparer."""
        self._look()
        super().expect(ref, expected)

    def exchange_objects(self, objects: Mapping[str, bytes], check: Callable[[], None]) -> None:
        """See TreeTransport: each commit that could bring them is upon a head that was looked at."""
        self._check_head = check
        self.replace_objects(objects)

    def remove_objects(self, names: Sequence[str]) -> bool:
        """See TreeTransport: all by one commit."""
        self._access.check_writing(str(self._ref))
        for failures in range(_TRIES):
            self._look()
            head = self._head
            here = [] if head is None else [entry.path for entry in self._repository.look_up(head, names)]
            if head is None or names[0] not in here:
                return failures > 0
            self._refuse_tag()
            try:
                self._repository.commit(self._ref.tag, head, f"Without {Path(names[0]).stem}", [], {}, removed=here)
            except Failure as failure:
                self._pause_after(failure, failures)
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def describe(self, feature: str) -> None:
        """See TreeTransport: the commit that needs a feature lists it."""
        self._features.append(feature)

    def has_object(self, name: str) -> bool:
        """See TreeTransport."""
        return self._repository.has(self._head or self._ref.revision or self._ref.tag, name)

    def list_packs(self) -> Sequence[str]:
        """See TreeTransport."""
        if PACKS not in self.description()["features"]:
            return []
        pages = self._repository.pages(self._found_head(), PACKS)
        return packs_among(entry.path for page in pages for entry in page if entry.size)

    def show(self, name: str) -> str:
        """See TreeTransport."""
        return self._repository.show(name)

    def absent(self, name: str) -> Exception:
        """See TreeTransport."""
        at = self._ref.revision or self._ref.tag
        return BackendError(f"{self.show(name)}: there is no image here, at {at}", status=404)

    # Looking.

    def _look(self) -> None:
        """Finds out which commit is meant now; None where there is none."""
        self._documents.clear()
        self._head, self._absent = None, ""
        try:
            self._head = self._repository.commit_of(self._ref.revision or self._ref.tag)
        except BackendError as error:
            if error.code not in ABSENT:
                raise
            self._absent = error.code

    def _found_head(self) -> str:
        if self._head is None:
            self._head = self._repository.commit_of(self._ref.revision or self._ref.tag)
        return self._head

    def _present(self, names: AbstractSet[str]) -> set[str]:
        """Those of some files of one folder that are there: the listed ones, until asking for the rest takes but one request."""
        head = self._found_head()
        found: set[str] = set()
        left = set(names)
        pages = self._repository.pages(head, min(names, default="").partition("/")[0])
        while len(left) > PATHS:
            page = next(pages, None)
            if page is None:
                return found
            found.update(entry.path for entry in page if entry.size and entry.path in left)
            # Listings go by paths, so that what sorts before their last one is not there.
            last = max((entry.path for entry in page), default="")
            left = {name for name in left if name > last}
        found.update(entry.path for entry in self._repository.look_up(head, sorted(left)) if entry.size)
        return found

    def _names_of(self, commit: str) -> list[str | None]:
        """Names of the images of a commit, None for the unnamed one."""
        unnamed: list[str | None] = [None for entry in self._repository.look_up(commit, [MANIFEST]) if entry.size]
        listed = (Path(entry.path) for page in self._repository.pages(commit, NAMED) for entry in page)
        return unnamed + sorted(path.stem for path in listed if path.suffix == ".json")

    # Writing.

    def _prepare(self) -> None:
        """Sees to it that there is a repository to write to, once."""
        if self._ready:
            return
        self._access.check_writing(str(self._ref))
        if self._head is None:
            if self._absent != "no_revision":
                self._repository.create(public=self._public)
            self._look()
        self._refuse_tag()
        self._ready = True

    def _refuse_tag(self) -> None:
        if self._ref.tag != _MAIN and self._ref.tag in self._repository.refs()[1]:
            raise BadRef(f"{self._ref}: {self._ref.tag} is a tag there, which does not move: push to a branch")

    def _send(self, groups: Iterable[tuple[dict[str, Buffer | Path], object]]) -> None:
        self._prepare()

        def uploads() -> Iterator[Upload]:
            for contents, keep in groups:
                for upload in self._repository.uploads(contents, keep):
                    if upload.action is not None and "actions" not in upload.action:
                        self._count_found(upload)
                    yield upload

        with closing(self._workers.map(self._repository.upload, uploads(), lambda upload: upload.held)) as results:
            for upload, _ in results:
                self._pending.update({addition.path_in_repo: addition for addition in upload.additions})
                while len(self._pending) > self._pace:
                    self._commit({})

    def _count_found(self, upload: Upload) -> None:
        """Counts what the Hub has had before, as a push that was interrupted leaves it."""
        for addition in upload.additions:
            if addition.path_in_repo.startswith("blobs/"):
                self.traffic.found += 1
                self.traffic.found_bytes += addition.upload_info.size

    def _commit(self, objects: Mapping[str, bytes]) -> bool:
        """Makes one commit, the objects being in the last; returns whether it was that."""
        for failures in range(_TRIES):
            if self._head is None:
                self._repository.create_branch(self._ref.tag)
                self._look()
            parent = self._found_head()
            part = dict(islice(self._pending.items(), self._pace))
            is_last = bool(objects) and len(part) == len(self._pending)
            if is_last:
                self._check_head()
            documents = self._with_description(objects) if is_last else {}
            start = time.monotonic()
            try:
                title = _title(objects) if is_last else "Blobs of an image"
                self._head = self._repository.commit(self._ref.tag, parent, title, part.values(), documents)
            except Failure as failure:
                self._pause_after(failure, failures)
                if not self._has_come(part, documents, parent):
                    continue
            else:
                quick = time.monotonic() - start < _SLOW_SECONDS
                self._pace = min(2 * self._pace, _MOST_PACE) if quick else max(self._pace // 2, _LEAST_PACE)
            self._documents.clear()
            for name in part:
                del self._pending[name]
            self._needed.update(part)
            return is_last
        raise AssertionError("the last attempt returns or raises")

    def _with_description(self, objects: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Objects, and before them the description where it lacks a feature that they need."""
        values = self.description()
        lacking = [feature for feature in dict.fromkeys(self._features) if feature not in values["features"]]
        if not lacking:
            return objects
        return {DESCRIPTION: to_json(values | {"features": [*values["features"], *lacking]}), **objects}

    def _pause_after(self, failure: Failure, failures: int) -> None:
        """Waits until a commit may be tried again; raises where that is of no use."""
        status = getattr(failure.error, "status", None)
        is_conflict = status in _CONFLICTS
        is_hopeless = not (failure.passing or status == _TOO_LARGE)
        if is_hopeless or failures + 1 >= (_TRIES if is_conflict else _FAILURES):
            raise failure.error from None
        if is_conflict:
            pause = random.uniform(0, min(0.05 * 2**failures, 2.0))  # noqa: S311 - jitter needs no secrecy
        else:
            pause = random.uniform(0.5, 1.0) * min(0.2 * 3**failures, 10.0)  # noqa: S311 - likewise
            if failure.begun:
                self._pace = max(self._pace // 2, _LEAST_PACE)  # it may have been too much at once
        self.traffic.retries += 1
        self._workers.pause(pause + (failure.after or 0))

    def _has_come(self, part: Mapping[str, CommitOperationAdd], documents: Mapping[str, bytes], parent: str) -> bool:
        """Whether all that was to be committed is there now.

        Raises:
            BlobNotFound: Another commit has taken something away that the image needs.
        """
        self._documents.clear()
        self._head = self._repository.commit_of(self._ref.tag)
        if self._head == parent:
            return False
        if gone := self._needed - self._present(self._needed):
            where = self.show(min(gone))
            raise BlobNotFound(f"{where} has been removed by another commit: push the image again", path=where)
        entries = {entry.path: entry for entry in self._repository.look_up(self._head, [*part, *documents])}
        contents = {name: _has_content(entries.get(name), content) for name, content in documents.items()}
        blobs = {name: _is_object(entries.get(name), addition) for name, addition in part.items()}
        return all(contents.values()) and all(blobs.values())


def _groups(items: Iterable[StoredBlob]) -> Iterator[list[StoredBlob]]:
    """What is asked about together."""
    group: list[StoredBlob] = []
    held = 0
    for item in items:
        if group and (len(group) == BATCH or held + item.held > _GROUP_BYTES):
            yield group
            group, held = [], 0
        group.append(item)
        held += item.held
    if group:
        yield group


def _title(objects: Mapping[str, bytes]) -> str:
    """What the log of the repository says of an image."""
    if MANIFEST in objects:
        return f"Image sha256:{sha256(objects[MANIFEST]).hexdigest()[:12]}"
    return f"Image {', '.join(Path(name).stem for name in objects)}"


def _is_object(entry: Entry | None, addition: CommitOperationAdd) -> bool:
    return entry is not None and entry.sha256 == addition.upload_info.sha256.hex()


def _has_content(entry: Entry | None, content: bytes) -> bool:
    if entry is None:
        return False
    if entry.sha256 is not None:
        return entry.sha256 == sha256(content).hexdigest()
    return entry.oid == sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
