"""Page manifests of 100,000 pages: read, printed, walked."""

import hashlib

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pfimg

PAGES = 100_000
META = pfimg.CacheMeta(page_size_tokens=16, n_layers=32, n_heads=8, head_dim=128, dtype="bf16")


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def document() -> bytes:
    pages = [pfimg.Page(ix, digest(f"k{ix}"), digest(f"v{ix}")) for ix in range(PAGES)]
    return pfimg.PageManifest(META, pages, [pfimg.LogicalSeq("all", range(PAGES))]).to_json()


def test_parse(benchmark: BenchmarkFixture, document: bytes) -> None:
    assert len(benchmark(pfimg.PageManifest.from_json, document)) == PAGES


def test_print(benchmark: BenchmarkFixture, document: bytes) -> None:
    manifest = pfimg.PageManifest.from_json(document)
    grown = pfimg.PageManifest(manifest.meta, manifest.pages, manifest.logical_seqs)
    assert benchmark(grown.to_json) == document


def test_walk(benchmark: BenchmarkFixture, document: bytes) -> None:
    """Parses and walks: 200,000 digests, those of the layers among them."""
    blobs = pfimg.MemoryStore()
    small = blobs.put(b"")
    manifest = pfimg.Manifest(
        agent=pfimg.AgentInfo("bench"),
        model=pfimg.ModelLayer(small, small),
        cache=pfimg.CacheLayer(blobs.put(document)),
        world=pfimg.WorldLayer(small, small, small),
        effects=pfimg.EffectsLayer(small),
        trace=pfimg.TraceLayer(small),
        created_at="2026-01-01T00:00:00Z",
    )
    assert len(benchmark(pfimg.transitive_blob_digests, manifest, blobs)) == 2 + 2 * PAGES
