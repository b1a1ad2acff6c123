"""What moves, in which order, and what is believed: transfer over transports that remember or lie."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

import pfimg
from pfimg import _core, transfer, transit
from pfimg.keys import SigningKey
from pfimg.registries.refs import OtherRef
from pfimg.signing import PUBLIC_KEY, sign

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pfimg.registries import Sink, StoredBlob
    from pfimg.registries.refs import AnyRef

REF = "log://place"


class Logged:
    """A transport that keeps everything in memory and notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.frames: dict[str, bytes] = {}
        self.image: tuple[bytes, bytes | None] | None = None

    def missing(self, digests: Sequence[str]) -> set[str]:
        self.calls.append(("missing", list(digests)))
        return set(digests) - set(self.frames)

    def send(self, items: Iterable[StoredBlob]) -> None:
        for item in items:
            self.calls.append(("send", item.digest))
            self.frames[item.digest] = item.read()

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        self.calls.append(("fetch", list(digests)))
        sink.frames([(digest, bytearray(self.frames[digest])) for digest in digests])

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        self.calls.append(("read_manifest", ref))
        assert self.image is not None
        return self.image

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        self.calls.append(("publish", ref))
        self.image = manifest, signature
        return OtherRef(ref.scheme, "canonical")

    def exists(self, ref: AnyRef) -> bool:
        self.calls.append(("exists", ref))
        return self.image is not None


@pytest.fixture
def log() -> Logged:
    transport = Logged()
    pfimg.register_scheme("log", lambda ref: transport)  # noqa: ARG005 - there is one place only
    return transport


@pytest.fixture
def image(store: pfimg.PfStore, tmp_path: Path) -> str:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").write_text("content")
    meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=2, dtype="f16")
    cache = store.put_pages(meta, k=[b"k000", b"k001"], v=[b"v000", b"v001"])
    return pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work", cache=cache)


@pytest.fixture
def other(tmp_path: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path / "other")


def test_a_push_walks_asks_sends_and_publishes_last(log: Logged, store: pfimg.PfStore, image: str) -> None:
    walk = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    log.frames[walk[3]] = store.read_frame(walk[3])
    report = pfimg.push(store, image, REF)
    ref = OtherRef("log", "place")
    sends = [("send", digest) for digest in walk if digest != walk[3]]
    assert log.calls == [("missing", walk), *sends, ("publish", ref)]
    assert (report.ref, report.sent, report.skipped) == ("log://canonical", len(walk) - 1, 1)


def test_a_pull_checks_then_reads_what_names_more_then_the_rest(
    log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, REF)
    log.calls.clear()
    pfimg.pull(REF, other)
    manifest = store.get_manifest(image)
    (read, _), (_, documents), (_, rest) = log.calls
    assert read == "read_manifest"
    assert isinstance(documents, list)
    assert isinstance(rest, list)
    assert {manifest.world.fs, manifest.cache.manifest} <= set(documents) <= set(pfimg.manifest_blob_digests(manifest))
    assert sorted(documents + rest) == sorted(pfimg.transitive_blob_digests(manifest, store))


def test_nothing_is_asked_for_when_everything_is_here(log: Logged, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    log.calls.clear()
    pfimg.pull(REF, store)
    assert [call for call, _ in log.calls] == ["read_manifest"]


def test_no_blob_is_asked_for_before_the_signature_is_accepted(
    log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, REF)
    log.calls.clear()
    with pytest.raises(pfimg.SignatureError, match=r"^log://place: "):
        pfimg.pull(REF, other, trust=SigningKey(b"ours"))
    assert [call for call, _ in log.calls] == ["read_manifest"]


def test_a_blob_that_was_not_asked_for_does_no_harm(log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    stray = store.put(b"stray")
    fetch = log.fetch

    def generous(digests: Sequence[str], sink: Sink) -> None:
        sink.frames([(stray, store.read_frame(stray))])
        fetch(digests, sink)

    log.fetch = generous  # type: ignore[method-assign]
    report = pfimg.pull(REF, other)
    assert report.fetched == len(log.frames)
    assert other.verify().ok


def test_a_manifest_of_another_kind_is_refused(log: Logged, other: pfimg.PfStore) -> None:
    for manifest in (b"", b"{}", b"null", b'{"schema_version":2}'):
        log.image = manifest, sign(manifest, PUBLIC_KEY)
        with pytest.raises(pfimg.FormatError):
            pfimg.pull(REF, other)
    large = b" " * (1 << 20) + b"{}"
    log.image = large, sign(large, PUBLIC_KEY)
    with pytest.raises(pfimg.LimitExceeded):
        pfimg.pull(REF, other)
    assert other.stats().blobs == 0


def test_progress_tells_of_the_phases_and_ends_complete(
    log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    events: list[pfimg.Progress] = []
    sent = pfimg.push(store, image, REF, progress=events.append)
    got = pfimg.pull(REF, other, progress=events.append)
    last = {event.phase: event for event in events}
    assert list(last) == ["walk", "send", "fetch"]
    assert last["walk"].done == last["walk"].total == sent.sent
    assert (last["send"].done, last["send"].total, last["send"].bytes) == (sent.sent, sent.sent, sent.bytes_sent)
    assert (last["fetch"].done, last["fetch"].total, last["fetch"].bytes) == (got.fetched, got.fetched, got.bytes_fetched)
    for before, after in pairwise(events):
        assert before.phase != after.phase or (before.done <= after.done and before.bytes <= after.bytes)
    assert log.image is not None


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"codec": "gzip"}, pfimg.FormatError, "codec 'gzip'"),
        ({"layout": "heap"}, pfimg.FormatError, "layout 'heap'"),
    ],
)
def test_options_that_are_not_offered_are_refused_before_anything_moves(
    log: Logged, store: pfimg.PfStore, image: str, options: dict[str, str], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        pfimg.push(store, image, REF, **options)  # type: ignore[arg-type]
    with pytest.raises(error, match=reason):
        pfimg.copy(REF, REF, **options)  # type: ignore[arg-type]
    assert log.calls == []


def test_float_frames_are_refused_where_they_are_not_kept(log: Logged, store: pfimg.PfStore, image: str) -> None:
    with pytest.raises(pfimg.RegistryError, match="use another codec") as refused:
        pfimg.push(store, image, REF, codec="float")
    assert refused.value.code == "not_offered"
    assert log.calls == []


def test_packs_are_refused_where_they_are_not_carried(log: Logged, store: pfimg.PfStore, image: str) -> None:
    with pytest.raises(pfimg.RegistryError, match="carries no packs") as refused:
        pfimg.push(store, image, REF, layout="packed")
    assert refused.value.code == "not_offered"
    assert log.calls == []
    pfimg.push(store, image, REF)
    with pytest.raises(pfimg.RegistryError, match="carries no packs"):
        pfimg.copy(REF, REF, layout="packed")


class Own:
    """Somebody's own registry, which is no transport."""

    def __init__(self, ref: AnyRef, *, jobs: int | None = None, colour: str = "red") -> None:
        self.ref, self.jobs, self.colour = ref, jobs, colour

    def push(self, ref: object, manifest: pfimg.Manifest, store: pfimg.BlobStore) -> pfimg.PushReport:
        return pfimg.PushReport(f"{ref} {manifest.id} {store.has(manifest.id)} {self.jobs}", 0, 0, 0, 0.0)

    def pull(self, ref: object, store: pfimg.BlobStore | None = None) -> Any:
        return pfimg.PullReport(f"{ref} {store is not None}", 0, 0, 0, "verified", 0.0)

    def exists(self, ref: object) -> bool:
        return ref == self.ref


def test_a_registry_that_is_no_transport_is_used_as_it_is(log: Logged, store: pfimg.PfStore, image: str) -> None:
    pfimg.register_scheme("own", Own)
    assert pfimg.push(store, image, "own://x", jobs=3).ref == f"own://x {image} True 3"
    assert pfimg.pull("own://x", store).image == "own://x True"
    assert pfimg.exists("own://x")
    opened = pfimg.registries.open("own://x", colour="blue")
    assert isinstance(opened, Own)
    assert opened.colour == "blue"
    with pytest.raises(pfimg.RegistryError, match="does not take trust, layers"):
        pfimg.pull("own://x", store, trust="self-signed", layers=["cache"])
    with pytest.raises(pfimg.RegistryError, match="does not take sign"):
        pfimg.push(store, image, "own://x", sign=SigningKey(b"x"))
    with pytest.raises(pfimg.RegistryError, match="not single blobs"):
        pfimg.copy("own://x", REF)
    assert log.calls == []


def test_a_transport_gets_its_options_and_the_registry_its_key(
    log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def make(ref: AnyRef, **options: object) -> Logged:
        assert str(ref) == REF
        seen.append(options)
        return log

    pfimg.register_scheme("log", make)
    registry = pfimg.registries.open(REF, sign_key=SigningKey(b"ours"), colour="blue")
    registry.push(REF, store.get_manifest(image), store)
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "another kind's")
    with pytest.raises(pfimg.SignatureError):
        pfimg.pull(REF, other, jobs=2)
    report = registry.pull(REF, other)
    assert isinstance(report, pfimg.PullReport)
    assert report.signature == "verified"
    assert [options for options in seen if options != {"colour": "blue"}] == [{"jobs": 2}]


def test_repairs_come_from_one_place(log: Logged, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, REF)
    lost = store.get_manifest(image).trace.messages
    path = store.blob_path(lost)
    assert path is not None
    path.unlink()
    with pytest.raises(pfimg.BadRef, match="not one place"):
        transfer.repair(store, [lost], pfimg.registries.FileRegistry())
    assert transfer.repair(store, [], REF) == set()
    assert transfer.repair(store, [lost, lost], pfimg.registries.open(REF)) == {lost}
    assert transfer.repair(store, [lost], REF) == set()
    assert log.frames.keys() >= {lost}


def test_a_scheme_without_an_adapter(store: pfimg.PfStore, image: str) -> None:
    ref = pfimg.registries.OtherRef("vault", "one")
    for act in (lambda ref: pfimg.push(store, image, ref), lambda ref: pfimg.pull(ref, store), pfimg.exists):
        with pytest.raises(
            pfimg.UnsupportedScheme, match=r"vault://one: no adapter for vault:// is here; there are some for .*file://"
        ):
            act(ref)


def test_a_scheme_that_nobody_knows(store: pfimg.PfStore) -> None:
    with pytest.raises(pfimg.UnsupportedScheme, match="'gopher' is not known"):
        pfimg.pull("gopher://host/x", store)


def test_a_scheme_may_come_from_an_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "vault-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vault\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[pfimg.registries]\nvault = vault_adapter:make\n")
    (tmp_path / "vault_adapter.py").write_text(
        "import pathlib, pfimg\n"
        "def make(ref, **options):\n"
        "    return pfimg.registries.FileTransport(pfimg.FileRef(pathlib.Path(ref.location)))\n"
    )
    script = (
        "import sys, pfimg\n"
        "store = pfimg.PfStore.open(sys.argv[1] + '/store')\n"
        "ref = f'vault://{sys.argv[1]}/registry'\n"
        "print(pfimg.push(store, pfimg.snapshot(store, agent='tester'), ref).ref == ref, pfimg.exists(ref))\n"
        "try: pfimg.exists(pfimg.registries.OtherRef('safe', 'one'))\n"
        "except pfimg.UnsupportedScheme as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, tmp_path],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    spoken = "az://, file://, gs://, hf://, http://, https://, ipfs://, oci://, s3://, vault://"
    refused = f"safe://one: no adapter for safe:// is here; there are some for {spoken}"
    assert done.stdout.splitlines() == ["True True", refused], done.stderr


@pytest.mark.parametrize(
    "module", ["transfer", "transit", "registries", "registries.base", "registries.file", "registries.refs", "signing", "store"]
)
def test_every_module_can_be_imported_first(module: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"import pfimg.{module}"], check=True)


def test_a_push_beside_a_sweep_keeps_what_it_sends(log: Logged, store: pfimg.PfStore, image: str) -> None:
    send = log.send

    def sweep(items: Iterable[StoredBlob]) -> None:
        store.remove_image(image)
        with pytest.raises(BlockingIOError):
            held_exclusively(store)
        send(items)

    log.send = sweep  # type: ignore[method-assign]
    pfimg.push(store, image, REF)
    store.gc(grace_seconds=0)
    assert store.stats().blobs == 0


def held_exclusively(store: pfimg.PfStore) -> None:
    """What gc needs before it removes anything."""
    with (store.root / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("codec", ["zstd", "store", "auto"])
def test_frames_are_encoded_anew_in_batches(
    log: Logged, store: pfimg.PfStore, other: pfimg.PfStore, image: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    sizes = []

    def counted(store: pfimg.PfStore, digests: Sequence[str], *, codec: str) -> list[bytes]:
        sizes.append(len(digests))
        return _core.Store.encode_frames(store, digests, codec=codec)

    monkeypatch.setattr(transit, "_BATCH", 3)
    monkeypatch.setattr(pfimg.PfStore, "encode_frames", counted)
    pfimg.push(store, image, REF, codec=codec)
    assert sizes == [3] * (len(walk) // 3) + [len(walk) % 3] * (len(walk) % 3 > 0)
    assert log.frames == {digest: _core.encode_frame(store.get(digest), codec=codec) for digest in walk}
    pfimg.pull(REF, other)
    assert other.get_many(walk) == store.get_many(walk)


def test_a_blob_that_cannot_be_encoded_anew_goes_to_quarantine(log: Logged, store: pfimg.PfStore, image: str) -> None:
    walk = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    path = store.root / "blobs" / "sha256" / walk[5][7:9] / f"{walk[5][7:]}.zst"
    path.write_bytes(_core.encode_frame(b"something else"))
    with pytest.raises(pfimg.IntegrityError) as raised:
        pfimg.push(store, image, REF, codec="zstd")
    assert raised.value.digest == walk[5]
    assert not path.exists()
    assert list((store.root / "quarantine").iterdir())
    assert not log.frames
    assert log.image is None


def test_blobs_sent_ahead_are_verified(store: pfimg.PfStore, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/registry"
    good, bad = store.put_many([b"good" * 1000, b"bad" * 1000])
    path = store.blob_path(bad)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(pfimg.IntegrityError, match=bad):
        pfimg.push_blobs(store, [good, bad], ref)
    assert (store.has(bad), len(list((store.root / "quarantine").iterdir()))) == (False, 1)
    with pytest.raises(pfimg.BlobNotFound, match=bad):
        pfimg.push_blobs(store, [bad], ref)
    assert pfimg.push_blobs(store, [], ref).sent == 0
    assert pfimg.push_blobs(store, [good], ref).skipped <= 1
    with pytest.raises(pfimg.FormatError, match="codec"):
        pfimg.push_blobs(store, [good], ref, codec="gzip")


def test_blobs_go_ahead_only_where_single_ones_are_kept(store: pfimg.PfStore) -> None:
    blob = store.put(b"early")
    for ref in ("http://localhost:1/images", "ipfs://"):
        with pytest.raises(pfimg.RegistryError) as refused:
            pfimg.push_blobs(store, [blob], ref)
        assert refused.value.code == "not_offered"
