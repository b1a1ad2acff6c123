"""The golden documents, which Rust reads too: ids, digests, bytes and walk orders."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import pfimg

GOLDEN = Path(__file__).parent / "documents"
INDEX: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "index.json").read_bytes())


def cases(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", INDEX[kind], ids=[case["file"] for case in INDEX[kind]])


@cases("manifests")
def test_manifests_keep_their_bytes_and_ids(case: dict[str, Any]) -> None:
    document = (GOLDEN / case["file"]).read_bytes()
    manifest = pfimg.Manifest.from_json(document)
    assert manifest.to_json() == document
    assert manifest.id == case["id"] == "sha256:" + hashlib.sha256(document).hexdigest()
    assert len(manifest.parents) == case["parents"]


@cases("pages")
def test_page_manifests_keep_their_bytes_and_new_ones_are_printed_alike(case: dict[str, Any]) -> None:
    document = (GOLDEN / case["file"]).read_bytes()
    read = pfimg.PageManifest.from_json(document)
    assert pfimg.digest_of(document) == case["digest"]
    assert read.to_json() == document
    assert read.meta.page_bytes == case["page_bytes"]
    assert [page.ix for page in read.pages] == case["ixs"]
    assert [sequence.id for sequence in read.logical_seqs] == case["ids"]
    made = pfimg.PageManifest(read.meta, list(read.pages)[::-1], read.logical_seqs[::-1])
    assert (made.to_json() == document) is case["canonical"]


@cases("manifests")
def test_walks_are_those_of_the_reference_and_what_it_leaves_out(case: dict[str, Any]) -> None:
    store = pfimg.MemoryStore()
    store.put(b"x")
    for path in sorted((GOLDEN / "layers").iterdir()) + sorted((GOLDEN / "pages").iterdir()):
        store.put(path.read_bytes())
    manifest = pfimg.Manifest.from_json((GOLDEN / case["file"]).read_bytes())
    walk = case["walk"] + case["walk_beyond"]
    assert pfimg.transitive_blob_digests(manifest, store) == walk
    layers = pfimg.manifest_blob_digests(manifest)
    assert layers == walk[: len(layers)]
