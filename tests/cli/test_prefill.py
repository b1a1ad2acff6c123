from pathlib import Path
from typing import Any

import pytest

import pfimg

Command = Any

PAGE = 4096
LLAMA = pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd")


def page(number: int) -> bytes:
    return bytes([number]) * PAGE


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The directory of an engine's cache: three text keys, one of bytes, and a namespace of another model."""
    with pfimg.PageCache(tmp_path / "cache", page_bytes=PAGE, arena_bytes=1 << 20) as opened:
        opened.bind("chat", LLAMA)
        opened.put_many("chat", ["a1", "a2", "b1", b"\x0a1"], [page(n) for n in range(4)])
        opened.bind("other", pfimg.CacheIdentity("other", "", "bf16", (1,), "nhd"))
        opened.put_many("other", ["a1"], [page(9)])
    return tmp_path / "cache"


def held(directory: Path, keys: list[bytes | str]) -> list[bytes | None]:
    with pfimg.PageCache(directory, page_bytes=PAGE, arena_bytes=1 << 20) as opened:
        opened.bind("chat", LLAMA)
        out = [bytearray(PAGE) for _ in keys]
        return [bytes(row) if hit else None for row, hit in zip(out, opened.get_many("chat", keys, out=out), strict=True)]


def test_pages_go_through_an_image_into_another_cache(pf: Command, cache: Path, tmp_path: Path) -> None:
    exported = pf("export", "--cache", cache)
    assert (exported.code, exported.err) == (0, "")
    image = exported.out.strip()
    warmed = pf("warm", image[:20], "--cache", tmp_path / "new", "--json").json
    assert (warmed["image"], warmed["namespaces"], warmed["keys"], warmed["fetched"]) == (image, ["chat", "other"], 5, 5)
    assert held(tmp_path / "new", ["a1", b"\x0a1", "none"]) == [page(0), page(3), None]
    assert pf("ls").code == 0


def test_an_image_is_pushed_and_warms_from_there(pf: Command, cache: Path, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/registry"
    told = pf("export", "--cache", cache, "--namespace", "chat", "--prefix", "a", "--push", ref, "--json").json
    assert (told["parts"], told["keys"], told["bytes"], told["pushed"]["ref"]) == (1, 2, 2 * PAGE, ref)
    shown = pf("warm", ref, "--cache", tmp_path / "new")
    assert shown.code == 0
    assert told["image"] in shown.out
    assert held(tmp_path / "new", ["a1", "a2", "b1"]) == [page(0), page(1), None]


def test_keys_of_bytes_are_chosen_in_hexadecimal(pf: Command, cache: Path) -> None:
    assert pf("export", "--cache", cache, "--prefix", "0x0a", "--json").json["keys"] == 1
    assert pf("export", "--cache", cache, "--prefix", "0xa").code == 2


def test_keys_alone_come_first(pf: Command, cache: Path, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/registry"
    assert pf("export", "--cache", cache, "--push", ref).code == 0
    assert pf("warm", ref, "--cache", tmp_path / "new", "--namespace", "chat", "--lazy", "--json").json["fetched"] == 0
    with pfimg.PageCache(tmp_path / "new", page_bytes=PAGE, arena_bytes=1 << 20, registry=ref) as opened:
        opened.bind("chat", LLAMA)
        out = [bytearray(PAGE)]
        assert opened.get_many("chat", ["b1"], out=out) == [True]
        assert bytes(out[0]) == page(2)


def test_what_does_not_fit_is_told_in_a_line(pf: Command, cache: Path, sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    absent = pf("export", "--cache", tmp_path / "nothing")
    assert (absent.code, "no page cache" in absent.line) == (3, True)
    unknown = pf("export", "--cache", cache, "--namespace", "none")
    assert (unknown.code, "'chat'" in unknown.line) == (1, True)
    assert pf("export").code == 2
    image = pf("export", "--cache", cache).out.strip()
    with pfimg.PageCache(tmp_path / "new", page_bytes=PAGE, arena_bytes=1 << 20) as opened:
        opened.bind("chat", pfimg.CacheIdentity("llama", "v2", "bf16", (16, 2, 2, 32), "nhd"))
        opened.put_many("chat", ["x"], [page(0)])
    other = pf("warm", image, "--cache", tmp_path / "new", "--namespace", "chat")
    assert (other.code, "revision 'main' is not 'v2'" in other.line) == (1, True)
    with pfimg.PageCache(tmp_path / "busy", page_bytes=PAGE, arena_bytes=1 << 20):
        busy = pf("warm", image, "--cache", tmp_path / "busy")
        assert (busy.code, "already" in busy.line) == (1, True)
    plain = pf("snapshot", sandbox, "--agent", "tester").out.strip()
    assert (pf("warm", plain, "--cache", tmp_path / "new").code, pf("warm", "file:///none", "--cache", tmp_path).code) == (1, 3)
