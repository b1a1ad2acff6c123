import errno
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pfimg
from pfimg import _core
from pfimg.bench import CODECS, BenchReport, CodecRates, _float_pages, _stamp, measure
from pfimg.errors import LimitExceeded

Command = Any


def report(**rates: float) -> BenchReport:
    known = dict.fromkeys(("memory_copy", "hash", "plain_write", "plain_write_synced", "plain_read"), 4e9)
    known |= dict.fromkeys(("store", "store_synced", "load"), 1e9)
    about = {"directory": "/d", "kernel": "k", "threads": 2, "pages": 3, "page_bytes": 4096, "rounds": 3}
    return BenchReport(**about, **(known | rates), codecs={"auto": CodecRates(1e9, 2e9, 0.7)})  # type: ignore[arg-type]


def test_it_measures_everything_and_leaves_nothing(pf: Command, tmp_path: Path) -> None:
    result = pf("bench", tmp_path, "--size", "4MiB", "--page-bytes", "4096", "--json")
    assert (result.code, result.err) == (0, "")
    found = result.json
    rates = ["memory_copy", "hash", "plain_write", "plain_write_synced", "plain_read", "store", "store_synced", "load"]
    assert all(found[name] > 0 for name in rates)
    assert list(found["codecs"]) == list(CODECS)
    assert found["codecs"]["store"]["size"] > 1  # frames have headers
    assert 0.6 < found["codecs"]["float"]["size"] < found["codecs"]["zstd"]["size"] < 0.9
    assert set(found["limits"]) == set(found["shares"]) == {"store", "store_synced", "load"}
    assert (found["directory"], found["page_bytes"], found["threads"]) == (str(tmp_path), 4096, _core.threads())
    assert found["kernel"] in _core.kernels()
    assert found["verdict"].startswith("storing runs at ")
    assert list(tmp_path.iterdir()) == []


def test_it_prints_a_table_that_ends_with_the_verdict(pf: Command, tmp_path: Path) -> None:
    lines = pf("bench", tmp_path, "--size", "4MiB", "--page-bytes", "4096").out.splitlines()
    assert lines[0].endswith(str(tmp_path))
    assert lines[-1].startswith("storing runs at ")


def test_without_a_directory_it_measures_where_the_store_is_or_would_be(pf: Command, tmp_path: Path) -> None:
    size = ("--size", "4MiB", "--page-bytes", "4096", "--json")
    assert pf("bench", *size).json["directory"] == str(tmp_path)
    store = pfimg.PfStore.open(tmp_path / "store")
    assert pf("bench", *size).json["directory"] == str(tmp_path / "store")
    assert store.verify().ok
    assert store.verify().foreign == ()


def test_limits_shares_and_verdict_follow_from_the_rates() -> None:
    found = report(plain_write=4e9, plain_write_synced=2e9, plain_read=12e9)
    assert found.limits == pytest.approx({"store": 2e9, "store_synced": 4e9 / 3, "load": 3e9})
    assert found.shares == pytest.approx({"store": 0.5, "store_synced": 0.75, "load": 1 / 3})
    assert "75%" in found.verdict
    assert "writing to this directory takes longer" in found.verdict
    assert "hashing takes longer" in report(plain_write_synced=5e9).verdict
    assert "33% of 3.00 GB/s" in str(found)


def test_a_size_that_cannot_be_is_refused(pf: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pf("bench", tmp_path, "--size", "1kB")
    assert result.code == 1
    assert "too little" in result.line
    assert pf("bench", tmp_path / "absent").code == 2
    assert pf("bench", tmp_path, "--page-bytes", "8").code == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(LimitExceeded, match=r"has 1\.0 kB left"):
        measure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no space"):
        measure(tmp_path, size=4 << 20, page_bytes=4096)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(process: Command, tmp_path: Path, number: int) -> None:
    directory = tmp_path / "measured"
    directory.mkdir()
    running = process("bench", directory, "--size", "512MiB", "--page-bytes", "65536")
    deadline = time.monotonic() + 60
    while not list(directory.rglob("blobs")):  # in the midst of a round
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (128 + number, "")
    assert list(directory.iterdir()) == []


def test_it_says_how_far_it_is(tmp_path: Path) -> None:
    events: list[pfimg.Progress] = []
    measure(tmp_path, size=4 << 20, page_bytes=4096, progress=events.append)
    assert [event.done for event in events] == list(range(events[0].total))


def test_made_up_pages_are_floats_no_two_alike() -> None:
    pages = _float_pages(8, 65_536)
    assert pages == _float_pages(8, 65_536)
    exponents = Counter((high << 1 | low >> 7) & 0xFF for low, high in zip(pages[::2], pages[1::2], strict=True))
    # Of a normal distribution, 68 % are within one standard deviation, and every second is negative.
    assert sum(count for exponent, count in exponents.items() if exponent < 127) / exponents.total() == pytest.approx(
        0.68, abs=0.02
    )
    assert sum(high >> 7 for high in pages[1::2]) / exponents.total() == pytest.approx(0.5, abs=0.01)
    seen = set()
    for number in range(3):
        _stamp(pages, 65_536, number)
        seen |= {bytes(pages[start : start + 65_536]) for start in range(0, len(pages), 65_536)}
    assert len(seen) == 24
