"""Making an archive for IPFS on one thread, beside the hashing that it takes.

    PFIMG_THREADS=1 python -m benches.car [--rounds N]

2,000 files of 64 KiB and 200 of 2 MiB, in memory. Each byte is hashed twice: for the root, which is known before the first byte
is sent, and again while it is sent, so that what changed in between is noticed. What the rest takes is a difference within a
round. Seconds are of the processor, so that other programs do little harm.
"""

import argparse
import os
from statistics import median
from time import process_time

import pfimg
from pfimg import car
from pfimg._core import digests_of, threads

SIZES = {"2,000 × 64 KiB": (2_000, 64 << 10), "200 × 2 MiB": (200, 2 << 20)}


def seconds(files: list[bytes]) -> tuple[float, float]:
    """Seconds of the archive, and of hashing its files as often as it does."""
    entries = [(f"blob_{at:064x}.zst", content) for at, content in enumerate(files)]
    start = process_time()
    archive = sum(len(chunk) for chunk in car.plan(entries))
    made = process_time()
    for _ in range(2):
        digests_of(files)
    done = process_time()
    assert archive > sum(map(len, files))
    return made - start, done - made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"kernel {pfimg.kernel()}, threads {threads()}")
    for name, (count, size) in SIZES.items():
        files = [os.urandom(size) for _ in range(count)]
        times = [seconds(files) for _ in range(rounds + 1)][1:]  # the first round warms up
        total = count * size / 1e9
        rest = [total / max(archive - hashing, 1e-9) for archive, hashing in times]
        print(
            f"{name}: archive {total / median(archive for archive, _ in times):.2f} GB/s, "
            f"hashing twice {total / median(hashing for _, hashing in times):.2f} GB/s, "
            f"beyond hashing {median(rest):.2f} GB/s ({min(rest):.2f} … {max(rest):.2f})"
        )


if __name__ == "__main__":
    main()
