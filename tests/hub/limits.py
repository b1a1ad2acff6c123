"""How much the Hub takes at once. A test that wants to meet a limit lowers it."""

from dataclasses import dataclass, field


@dataclass
class Quota:
    """Requests that are answered within a window of seconds."""

    requests: int
    seconds: int = 300


@dataclass
class Limits:
    preupload_files: int = 256  # in one call
    paths: int = 1_000  # in one call of paths-info
    commit_bytes: int = 10 * 1024**2  # of the body of a commit
    inline_binary: int = 1_000_000  # a larger binary file has to go to LFS
    regular_bytes: int = 10 * 1024**2  # a larger file of any kind is told to go to LFS
    folder_entries: int = 10_000
    tree_page: int = 1_000
    tree_page_expanded: int = 50
    commits_page: int = 50
    # An object above this goes up in parts of this size, which the reply to the batch tells as `chunk_size`.
    part_bytes: int = 16 * 1024**2
    # The real ones, by the kind of request.
    quotas: dict[str, Quota] = field(default_factory=lambda: {"api": Quota(1_000), "resolvers": Quota(5_000)})
