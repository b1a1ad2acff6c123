"""Pages of real keys and values, as many and as large as wanted, no two alike."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .peers.lmcache import key_of

Pages = npt.NDArray[np.uint8]
DATA = Path(__file__).parent.parent / "tests" / "data"
MANTISSA_BITS = 7  # of a bfloat16, the lowest
_FIELDS = range(0, 64, 16)  # where the four values of a 64-bit word begin


@cache
def sample() -> Pages:
    """The real pages of tests/data end to end."""
    return np.concatenate([np.load(DATA / f"kv_{side}_pages.npy").reshape(-1).view(np.uint8) for side in "kv"])


def masks(count: int, salt: int) -> npt.NDArray[np.uint64]:
    """`count` different masks over the mantissas of four bf16 values; another salt gives others, until 2²⁸ are used up."""
    numbers = np.arange(salt * count, (salt + 1) * count, dtype=np.uint64)
    # An odd factor maps the numbers below 2**28 onto one another, so that not only the lowest bits differ.
    numbers = numbers * np.uint64(0x9E3779B) & np.uint64(2**28 - 1)
    part = np.uint64(2**MANTISSA_BITS - 1)
    mask = np.zeros(count, np.uint64)
    for ix, field in enumerate(_FIELDS):
        mask |= (numbers >> np.uint64(MANTISSA_BITS * ix) & part) << np.uint64(field)
    return mask


class Batch:
    """Pages and a place to load them to, in the forms that the systems take; both are in memory that has been touched.

    The sample is repeated to `total_bytes` and cut to `page_bytes`. `renew` flips mantissa bits, others in each page: mantissas
    are noise to any codec and stay so, while signs and exponents, which are not, stay as they were.
    """

    def __init__(self, page_bytes: int, total_bytes: int) -> None:
        count = max(1, total_bytes // page_bytes)
        self._sample = np.resize(sample(), (count, page_bytes)).view(np.uint64)
        self._words = self._sample.copy()
        self.pages: Pages = self._words.view(np.uint8)
        self.out = np.ones_like(self.pages)
        self.keys: list[str] = []
        self.renew(0)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def page_bytes(self) -> int:
        return int(self.pages.shape[1])

    def renew(self, salt: int) -> None:
        """Pages that have not been seen before, and their names for systems that do not make them themselves."""
        np.bitwise_xor(self._sample, masks(len(self), salt)[:, None], out=self._words)
        self.keys = [key_of(f"{salt:08x}{ix:056x}") for ix in range(len(self))]
        self.views = _rows(self.pages)
        self.rows = _rows(self.out)

    def check(self, count: int) -> None:
        """Fails unless the first `count` pages have been loaded; forgets them."""
        if not np.array_equal(self.out[:count], self.pages[:count]):
            raise ValueError("what was loaded is not what was stored")
        self.out[:count] = 0


def _rows(array: Pages) -> list[memoryview]:
    whole = memoryview(array.reshape(-1))  # type: ignore[arg-type]  # mypy knows no buffers before Python 3.12
    step = array.shape[1]
    return [whole[start : start + step] for start in range(0, len(whole), step)]
