"""LMCache's `fs_native` storage: a C++ client whose workers write one file a page and read it back, unverified.

The wheel is only unpacked: its Python package wants PyTorch and more, its C++ client does not. Its extension module names
PyTorch's libraries among those to load, but uses no symbol of theirs (`nm -D` shows none), so stand-ins of those names satisfy
the loader, and the module runs as it was published.
"""

import ctypes
import importlib.machinery
import importlib.util
import select
import subprocess
import sysconfig
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .origin import CACHE, Missing, pip

VERSION = "0.5.6"
MODULE = "lmcache/lmcache_fs" + str(sysconfig.get_config_var("EXT_SUFFIX"))
STAND_INS = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so")


def download() -> None:
    """Gets the wheel, without what it depends on, and unpacks its file client."""
    if not (CACHE / MODULE).exists():
        pip("download", "--no-deps", "--only-binary=:all:", f"--dest={CACHE}", f"lmcache=={VERSION}")
        wheel = next(CACHE.glob(f"lmcache-{VERSION}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MODULE, CACHE)
        wheel.unlink()


def _satisfy_loader() -> None:
    """Loads a stand-in under each name that the module lists; the loader takes what is loaded already for what it looks for."""
    source = Path(__file__).with_name("lmcache_loader.c")
    for name in STAND_INS:
        library = CACHE / "stand-ins" / name
        if not library.exists():
            library.parent.mkdir(exist_ok=True)
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library, source], check=True, capture_output=True
            )
        ctypes.CDLL(str(library))


@cache
def client_class() -> Any:
    """The C++ client, or `Missing` with the reason."""
    path = CACHE / MODULE
    if not path.exists():
        raise Missing(f"LMCache {VERSION}: not in {CACHE.name}; get it with `python -m benches.peers`")
    try:
        _satisfy_loader()
        loader = importlib.machinery.ExtensionFileLoader("lmcache_fs", str(path))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"LMCache {VERSION}: {error}") from error
    return module.LMCacheFSClient


def key_of(name: str) -> str:
    """A page's key as LMCache writes it: the model, the rank, the object group and the hash of the page's tokens."""
    return f"model@00000000@0@{name}"


class LMCache:
    """One client on one directory. Keys are as `key_of` makes them; each call waits for its whole batch."""

    def __init__(self, root: Path, *, workers: int = 2) -> None:
        root.mkdir(parents=True, exist_ok=True)
        # No directory for temporaries of its own, no O_DIRECT, no read-ahead: its defaults.
        self._client = client_class()(str(root), workers, "", False, 0)
        self._poll = select.poll()
        self._poll.register(self._client.event_fd(), select.POLLIN)

    def put_many(self, keys: Sequence[str], pages: Sequence[memoryview]) -> None:
        """Writes each page as a file."""
        self._wait(self._client.submit_batch_set(list(keys), list(pages)))

    def get_many(self, keys: Sequence[str], out: Sequence[memoryview]) -> None:
        """Reads each file into its buffer."""
        self._wait(self._client.submit_batch_get(list(keys), list(out)))

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Which keys have a file."""
        found = self._wait(self._client.submit_batch_exists(list(keys)))
        assert found is not None
        return found

    def close(self) -> None:
        """Ends the workers."""
        self._client.close()

    def _wait(self, task: int) -> list[bool] | None:
        while True:
            self._poll.poll()
            for done, ok, error, found in self._client.drain_completions():
                assert done == task
                if not ok:
                    raise OSError(error)
                return list(found) if found is not None else None
