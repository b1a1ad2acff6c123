"""Many digests at once."""

import hashlib
import random

import blake3
import pytest

from pfimg._core import digests_of


def blobs(count: int) -> list[bytes]:
    numbers = random.Random(count)
    return [numbers.randbytes(numbers.choice((0, 1, 55, 56, 64, 127, 4096, 73_728))) for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 33, 200, 1100])
def test_digests_are_those_of_the_published_algorithms(count: int) -> None:
    batch = blobs(count)
    assert digests_of(batch) == ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in batch]
    assert digests_of(batch, algorithm="blake3") == ["blake3:" + blake3.blake3(blob).hexdigest() for blob in batch]


def test_axis_0_of_an_array_counts_blobs() -> None:
    array = memoryview(bytes(range(6))).cast("B", (3, 2))
    assert digests_of(array) == digests_of([b"\0\1", b"\2\3", b"\4\5"])


def test_a_single_blob_and_an_unknown_algorithm_are_refused() -> None:
    with pytest.raises(TypeError, match="use digest_of"):
        digests_of(b"abc")
    with pytest.raises(ValueError, match="md5"):
        digests_of([b"abc"], algorithm="md5")
