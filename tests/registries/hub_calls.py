"""Calls of the published client as the tests of the Hub make them: on one dataset."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from huggingface_hub.hf_api import RepoFile, RepoFolder
    from tests.hub import Hub

REPO = "tester/data"
ATTRIBUTES = ".gitattributes"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


def commit(api: HfApi, *operations: Operation, revision: str = "main", parent: str | None = None) -> CommitInfo:
    return api.create_commit(
        REPO,
        operations,
        commit_message="a change",
        commit_description="of files",
        repo_type="dataset",
        revision=revision,
        parent_commit=parent,
    )


def written(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    """What a test has put there: without the file that every repository has from the start."""
    return {path: content for path, content in hub.files(REPO, revision).items() if path != ATTRIBUTES}


def tree(api: HfApi, path: str | None = None, **how: Any) -> dict[str, RepoFile | RepoFolder]:
    return {entry.path: entry for entry in api.list_repo_tree(REPO, path, repo_type="dataset", **how)}


def download(api: HfApi, path: str, **how: Any) -> bytes:
    return Path(api.hf_hub_download(REPO, path, repo_type="dataset", **how)).read_bytes()
