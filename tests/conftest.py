"""What most tests need: an empty store, real KV pages, and settings that do not come from the machine."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings

import pfimg
from pfimg.registries import base

DATA = Path(__file__).parent / "data"

pytest_plugins = ["tests.servers.fixtures", "tests.hub.fixtures"]

# Processors are shared with other tests and with servers: how long an example takes says nothing of what is tested.
settings.register_profile("shared", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


# Where tests are started in the background, interruptions are ignored by all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class KvPages(NamedTuple):
    """Pages of a real model: `k[i]` and `v[i]` are page i, bf16 as uint16, shaped `meta.shape`."""

    meta: pfimg.CacheMeta
    k: npt.NDArray[Any]
    v: npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _settings_of_the_machine_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["STORE", "SESSION_SECRET", *(f"{registry}_REG_SIGN_KEY" for registry in ("FILE", "S3", "IPFS", "HF", "OCI"))]
    for name in names:
        monkeypatch.delenv(f"PF_{name}", raising=False)
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in ["PFIMG_HTTP_TOKEN", "PFIMG_TRUST", "PFIMG_KEY_PASSPHRASE", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", *proxies]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheme outlives its test."""
    monkeypatch.setattr(base, "_factories", dict(base._factories))


@pytest.fixture
def store(tmp_path: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path / "store")


@pytest.fixture(scope="session")
def kv_pages() -> KvPages:
    k, v = (np.load(DATA / f"kv_{side}_pages.npy", mmap_mode="r", allow_pickle=False) for side in "kv")
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=6, n_heads=12, head_dim=32, dtype="bf16")
    return KvPages(meta, k, v)
