"""Content-addressed images of running models and agents: KV pages and directories into verified blobs, and back.

Example:
    >>> import pfimg
    >>> store = pfimg.PfStore.open("store")
    >>> meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")
    >>> pages = store.put_pages(meta, k=[b"K" * meta.page_bytes], v=[b"V" * meta.page_bytes])
    >>> image = pfimg.snapshot(store, agent="my-agent", cache=pages, messages=[{"role": "user", "content": "hi"}])
    >>> k, v = store.get_pages(image)
    >>> k.shape, k.tobytes()[:4], v.tobytes()[:4]
    ((1, 1024), b'KKKK', b'VVVV')
"""

# `registries` comes before whatever uses `transfer`: its transports are over `transfer`, which needs no more than its base.
from pfimg import effects, environment, registries
from pfimg._core import (
    AgentInfo,
    CacheLayer,
    CacheMeta,
    EffectsLayer,
    FsTree,
    FsTreeEntry,
    LogicalSeq,
    Manifest,
    MemoryStore,
    ModelLayer,
    Page,
    PageManifest,
    TraceLayer,
    WorldLayer,
    __version__,
    kernel,
    kernels,
    manifest_blob_digests,
    transitive_blob_digests,
)
from pfimg.compat import checkout_filesystem, digest_of, merge, put_blob, read_blob, read_manifest, snapshot_filesystem
from pfimg.errors import (
    BackendError,
    BadRef,
    BlobNotFound,
    FormatError,
    IntegrityError,
    LimitExceeded,
    PfimgError,
    RegistryError,
    RegistryTimeout,
    SignatureError,
    StoreError,
    StoreOSError,
    UnsupportedScheme,
)
from pfimg.images import checkout, diff, snapshot
from pfimg.registries import (
    FileRef,
    HfRef,
    HttpRef,
    ImageRef,
    IpfsRef,
    OciRef,
    Registry,
    S3Ref,
    Transport,
    register_scheme,
)
from pfimg.signing import SigningKey, Trust
from pfimg.store import PfStore
from pfimg.transfer import copy, exists, pull, push
from pfimg.types import (
    BlobStore,
    Changes,
    Finding,
    GcReport,
    ImageDiff,
    LayerSet,
    Progress,
    PullReport,
    PushReport,
    StoreStats,
    VerifyReport,
)

__all__ = [
    "AgentInfo",
    "BackendError",
    "BadRef",
    "BlobNotFound",
    "BlobStore",
    "CacheLayer",
    "CacheMeta",
    "Changes",
    "EffectsLayer",
    "FileRef",
    "Finding",
    "FormatError",
    "FsTree",
    "FsTreeEntry",
    "GcReport",
    "HfRef",
    "HttpRef",
    "ImageDiff",
    "ImageRef",
    "IntegrityError",
    "IpfsRef",
    "LayerSet",
    "LimitExceeded",
    "LogicalSeq",
    "Manifest",
    "MemoryStore",
    "ModelLayer",
    "OciRef",
    "Page",
    "PageManifest",
    "PfStore",
    "PfimgError",
    "Progress",
    "PullReport",
    "PushReport",
    "Registry",
    "RegistryError",
    "RegistryTimeout",
    "S3Ref",
    "SignatureError",
    "SigningKey",
    "StoreError",
    "StoreOSError",
    "StoreStats",
    "TraceLayer",
    "Transport",
    "Trust",
    "UnsupportedScheme",
    "VerifyReport",
    "WorldLayer",
    "__version__",
    "checkout",
    "checkout_filesystem",
    "copy",
    "diff",
    "digest_of",
    "effects",
    "environment",
    "exists",
    "kernel",
    "kernels",
    "manifest_blob_digests",
    "merge",
    "pull",
    "push",
    "put_blob",
    "read_blob",
    "read_manifest",
    "register_scheme",
    "registries",
    "snapshot",
    "snapshot_filesystem",
    "transitive_blob_digests",
]
