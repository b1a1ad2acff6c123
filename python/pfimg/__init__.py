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
from pfimg import car, effects, environment, registries
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
    PageArena,
    PageManifest,
    TraceLayer,
    WorldLayer,
    __version__,
    kernel,
    kernels,
    manifest_blob_digests,
    transitive_blob_digests,
)
from pfimg.cache import PageCache
from pfimg.compat import checkout_filesystem, digest_of, merge, put_blob, read_blob, read_manifest, snapshot_filesystem
from pfimg.errors import (
    BackendError,
    BadRef,
    BlobNotFound,
    Conflict,
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
from pfimg.garbage import collect_garbage
from pfimg.images import checkout, diff, snapshot
from pfimg.keys import PublicKey, SigningKey
from pfimg.page_index import CacheIdentity
from pfimg.places import list_images, read_signature, remove_image
from pfimg.prefill import export_pages, warm
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
from pfimg.signing import SignedManifest, Trust
from pfimg.store import PfStore
from pfimg.transfer import copy, exists, pull, push, push_blobs
from pfimg.types import (
    BlobStore,
    Changes,
    ExportReport,
    Finding,
    GcReport,
    ImageDiff,
    LayerSet,
    Progress,
    PullReport,
    PushReport,
    StoreStats,
    VerifyReport,
    WarmReport,
)

__all__ = [
    "AgentInfo",
    "BackendError",
    "BadRef",
    "BlobNotFound",
    "BlobStore",
    "CacheIdentity",
    "CacheLayer",
    "CacheMeta",
    "Changes",
    "Conflict",
    "EffectsLayer",
    "ExportReport",
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
    "PageArena",
    "PageCache",
    "PageManifest",
    "PfStore",
    "PfimgError",
    "Progress",
    "PublicKey",
    "PullReport",
    "PushReport",
    "Registry",
    "RegistryError",
    "RegistryTimeout",
    "S3Ref",
    "SignatureError",
    "SignedManifest",
    "SigningKey",
    "StoreError",
    "StoreOSError",
    "StoreStats",
    "TraceLayer",
    "Transport",
    "Trust",
    "UnsupportedScheme",
    "VerifyReport",
    "WarmReport",
    "WorldLayer",
    "__version__",
    "car",
    "checkout",
    "checkout_filesystem",
    "collect_garbage",
    "copy",
    "diff",
    "digest_of",
    "effects",
    "environment",
    "exists",
    "export_pages",
    "kernel",
    "kernels",
    "list_images",
    "manifest_blob_digests",
    "merge",
    "pull",
    "push",
    "push_blobs",
    "put_blob",
    "read_blob",
    "read_manifest",
    "read_signature",
    "register_scheme",
    "registries",
    "remove_image",
    "snapshot",
    "snapshot_filesystem",
    "transitive_blob_digests",
    "warm",
]
