"""A directory with what tends to go wrong in its names, and a way to compare directories."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Listing = dict[str, tuple[str, int, bytes]]

FILES = {
    "hello.txt": b"hello\n",
    "a/b": b"1\n",
    "a-b": b"2\n",
    "a.b": b"3\n",
    "a b/with spaces/ leading and trailing ": b"x" * 5000,
    "größe/日本語/\N{PILE OF POO}.txt": "ümlaut\n".encode(),
    "cafe\u0301.txt": b"decomposed",
    "caf\u00e9.txt": b"composed",
    "empty": b"",
    "deep/" + "/".join("abcdefgh") + "/x": bytes(range(256)) * 64,
    "-dash": b"-",
    "#hash": b"#",
    "quote'\"": b"",
}


def write_odd_names(root: Path) -> None:
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for directory in sorted(path for path in root.rglob("*") if path.is_dir()):
        directory.chmod(0o755)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        file.chmod(0o644)
    (root / "hello.txt").chmod(0o755)
    (root / "a.b").chmod(0o600)
    (root / "a-b").chmod(0o444)
    (root / "bare").mkdir(mode=0o700)
    (root / "link").symlink_to("a/b")
    (root / "deep" / "up").symlink_to("../größe")
    (root / "dangling").symlink_to("nowhere")


@pytest.fixture
def odd_names(tmp_path: Path) -> Path:
    root = tmp_path / "odd names"
    root.mkdir()
    write_odd_names(root)
    return root


@pytest.fixture
def listing() -> Callable[[Path], Listing]:
    """Every path below a directory with kind, mode (a link has none worth comparing) and content or target."""

    def walk(root: Path) -> Listing:
        found: Listing = {}
        for directory, names, files in os.walk(root):
            for name in names + files:
                path = Path(directory, name)
                mode = stat.S_IMODE(path.lstat().st_mode)
                key = path.relative_to(root).as_posix()
                if path.is_symlink():
                    found[key] = ("symlink", 0, os.fsencode(path.readlink()))
                elif path.is_dir():
                    found[key] = ("dir", mode, b"")
                else:
                    found[key] = ("file", mode, path.read_bytes())
        return found

    return walk
