"""SHA-256 kernels: each gives the digests of hashlib, and only one that the processor has can be asked for.

A kernel is chosen as the module is loaded, hence the processes.
"""

import os
import subprocess
import sys

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


def run(code: str, kernel: str | None, directory: os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PFIMG_KERNEL"}
    if kernel is not None:
        environment["PFIMG_KERNEL"] = kernel
    command = [sys.executable, "-c", code, str(kernel)]
    return subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("kernel", pfimg.kernels())
def test_digests_are_those_of_hashlib(kernel: str, tmp_path: os.PathLike[str]) -> None:
    done = run(COMPARE, kernel, tmp_path)
    assert done.returncode == 0, done.stderr


def test_unless_told_otherwise_it_is_one_that_the_processor_has(tmp_path: os.PathLike[str]) -> None:
    assert pfimg.kernels()[-1] == "portable"
    done = run("import pfimg; print(pfimg.kernel())", None, tmp_path)
    assert done.stdout.strip() in pfimg.kernels()


@pytest.mark.parametrize("name", ["abacus", "", "AVX512", "arm-sha2,portable"])
def test_one_that_the_processor_lacks_is_refused(name: str, tmp_path: os.PathLike[str]) -> None:
    done = run("import pfimg", name, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pfimg.errors.FormatError: PFIMG_KERNEL: ")
    assert all(text in last for text in [f'"{name}"', *pfimg.kernels()])
