"""SHA-256 kernels: each gives the digests of hashlib, and only one that the processor has can be asked for.

A kernel is chosen once, hence the processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pfimg

COMPARE = """
import hashlib, random, sys
import numpy as np
import pfimg

assert pfimg.kernel() == sys.argv[1]
random = random.Random(0)
lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 4095, 65_536, 65_537, 300_001]
lengths += [random.randrange(2000) for _ in range(200)]
random.shuffle(lengths)
noise = random.randbytes(400_000)
blobs = [noise[start : start + length] for start, length in enumerate(lengths)]
names = ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in blobs]

assert [pfimg.digest_of(blob) for blob in blobs] == names
store = pfimg.PfStore.open("store")
for count in [0, 1, 2, 5, 13, 40, len(blobs)]:
    assert store.put_many(blobs[:count]) == names[:count]
assert store.get_many(names) == blobs
array = np.frombuffer(noise[: 17 * 3001], np.uint8).reshape(17, 3001)
assert store.put_many(array) == ["sha256:" + hashlib.sha256(row).hexdigest() for row in array]
"""


def run(code: str, kernel: str | None, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PFIMG_KERNEL"}
    if kernel is not None:
        environment["PFIMG_KERNEL"] = kernel
    command = [sys.executable, "-c", code, str(kernel)]
    return subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("kernel", pfimg.kernels())
def test_digests_are_those_of_hashlib(kernel: str, tmp_path: Path) -> None:
    done = run(COMPARE, kernel, tmp_path)
    assert done.returncode == 0, done.stderr


def test_unless_told_otherwise_it_is_one_that_the_processor_has(tmp_path: Path) -> None:
    assert pfimg.kernels()[-1] == "portable"
    done = run("import pfimg; print(pfimg.kernel())", None, tmp_path)
    assert done.stdout.strip() in pfimg.kernels()


# What hashes, or will: each is refused, and what does not hash still works.
REFUSED = """
import pathlib, pfimg
from pfimg import _core
assert pfimg.kernels()
manifest = pathlib.Path(MANIFEST).read_bytes()
frame = _core.encode_frame(b"blob", codec="store")
assert _core.decode_frame(frame) == b"blob"
for call in [
    pfimg.kernel,
    lambda: pfimg.digest_of(b""),
    lambda: _core.digests_of([b""]),
    lambda: pfimg.PfStore.open("store"),
    pfimg.MemoryStore,
    lambda: pfimg.Manifest.from_json(manifest),
    lambda: _core.decode_frame(frame, expect="sha256:" + "0" * 64),
    lambda: _core.CarPlan([]),
    _core.CarReader,
    _core.CarBlocks,
    lambda: _core.car_cid_of(b""),
    lambda: _core.car_node("", b""),
]:
    try:
        call()
    except pfimg.FormatError as error:
        print(error)
    else:
        raise AssertionError(call)
assert not pathlib.Path("store").exists()
"""


@pytest.mark.parametrize("name", ["abacus", "", "AVX512", "arm-sha2,portable"])
def test_one_that_the_processor_lacks_is_refused(name: str, tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "other")
    (tmp_path / "manifest").write_bytes(store.get_manifest(pfimg.snapshot(store, agent="tester")).to_json())
    done = run(REFUSED.replace("MANIFEST", repr(str(tmp_path / "manifest"))), name, tmp_path)
    assert done.returncode == 0, done.stderr
    [line] = set(done.stdout.splitlines())
    assert line.startswith(f'PFIMG_KERNEL: "{name}" is no kernel of this processor')
    assert all(kernel in line for kernel in pfimg.kernels())


@pytest.mark.parametrize(
    "args", [["ls"], ["gc"], ["push", "0", "file:///nowhere"], ["--store", "new", "pull", "file:///nowhere"]]
)
def test_the_command_tells_so_in_one_line(args: list[str], tmp_path: Path) -> None:
    pfimg.PfStore.open(tmp_path / "store")
    environment = {**os.environ, "PFIMG_KERNEL": "abacus", "PF_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "pfimg", *args]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    [line] = done.stderr.splitlines()
    assert line.startswith('pfimg: error: PFIMG_KERNEL: "abacus" is no kernel of this processor, which has ')
    assert (done.returncode, done.stdout) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
