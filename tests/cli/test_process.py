"""The command as a process: exit codes, signals, pipes, terminals."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Any
Start = Callable[..., "subprocess.Popen[str]"]


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_version_and_help(process: Start) -> None:
    code, out, _ = finish(process("--version"))
    assert code == 0
    assert re.fullmatch(r"pfimg \d+\.\d+\.\d+\S*\n", out)
    code, out, _ = finish(process("--help"))
    assert code == 0
    commands = [
        "snapshot",
        "ls",
        "show",
        "checkout",
        "diff",
        "rm",
        "push",
        "pull",
        "clone",
        "copy",
        "exists",
        "signature",
        "keygen",
        "export",
        "warm",
        "verify",
        "gc",
        "stats",
        "bench",
        "completions",
    ]
    assert re.findall(r"^  ([a-z]+)  ", out, re.MULTILINE) == commands
    for command in commands:
        code, out, err = finish(process(command, "--help"))
        assert (code, err) == (0, "")
        assert "--json" in out
        assert "--store" in out


def test_help_does_not_load_what_draws() -> None:
    script = "import sys, pfimg.cli; pfimg.cli.run(['--help']); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_usage_errors_are_one_line(process: Start, tmp_path: Path) -> None:
    for args in (["frobnicate"], ["ls", "--frob"], ["snapshot", tmp_path], ["show"], ["gc", "--grace", "x"]):
        code, out, err = finish(process(*args))
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert err.startswith("pfimg: error: ")
        assert "--help" in err
    code, out, err = finish(process())
    assert (code, out) == (2, "")
    assert "Usage: pfimg" in err


def test_exit_codes_reach_the_shell(process: Start, image: str, tmp_path: Path) -> None:
    assert finish(process("ls"))[0] == 0
    assert finish(process("checkout", image, tmp_path))[0] == 1
    assert finish(process("pull", "nosuch://place"))[0] == 2
    assert finish(process("show", "sha256:" + "0" * 64))[0] == 3
    blob = next((tmp_path / "store" / "blobs").rglob(f"{image[7:]}.zst"))
    blob.write_bytes(blob.read_bytes()[:-1])
    assert finish(process("show", image))[0] == 4


def test_global_options_stand_before_or_after(
    process: Start, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PF_STORE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for args in (["--store", tmp_path / "store", "--json", "ls"], ["ls", "--json", "--store", tmp_path / "store"]):
        code, out, _ = finish(process(*args))
        assert code == 0
        assert [item["image"] for item in json.loads(out)] == [image]
    code, _, err = finish(process("ls"))
    assert code == 3
    assert f"{tmp_path}/home/.processfork" in err


def test_a_trace_only_with_debug(process: Start, tmp_path: Path) -> None:
    args = ["snapshot", tmp_path / "nowhere", "--agent", "tester"]
    _, _, err = finish(process(*args))
    assert len(err.splitlines()) == 1
    code, _, err = finish(process("--debug", *args))
    assert code == 3
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("pfimg: error: ")


def test_a_closed_pipe_is_silent(process: Start, image: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` that has gone already
    try:
        for args in (["ls"], ["show", image], ["show", image, "--json"], ["--help"], ["completions", "bash"]):
            running = process(*args, stdout=writer)
            _, err = running.communicate(timeout=60)
            assert (running.returncode, err) == (141, ""), args
    finally:
        os.close(writer)


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_a_full_disk_behind_stdout_is_an_error(process: Start, image: str, locale: str) -> None:
    with Path("/dev/full").open("w") as full:
        running = process("show", image, stdout=full, env={**os.environ, "LC_ALL": locale})
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert len(err.splitlines()) == 1


class Terminal:
    """A pseudo-terminal to be stderr or stdout of a process, read from the other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text = b""

    def read_until(self, pattern: bytes) -> None:
        while not re.search(pattern, self.text):
            piece = os.read(self.ours, 4096)
            assert piece, self.text
            self.text += piece

    def read_to_the_end(self) -> str:
        os.close(self.theirs)
        try:
            while piece := os.read(self.ours, 4096):
                self.text += piece
        except OSError:
            pass  # Linux answers EIO when the last writer has gone
        os.close(self.ours)
        return self.text.decode()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory that takes many seconds to capture, but no space on disk."""
    root = tmp_path / "large"
    root.mkdir()
    for name in "abcd":
        with (root / name).open("wb") as file:
            file.truncate(8 << 30)
    return root


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_snapshot_leaves_nothing(
    process: Start, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    running = process("snapshot", large, "--agent", "tester", stderr=terminal.theirs)
    terminal.read_until(rb"capture.*B/s")  # in the middle of it: the bar says how fast
    running.send_signal(number)
    assert running.stdout
    assert running.stdout.read() == ""
    assert running.wait(timeout=10) == code
    shown = terminal.read_to_the_end()
    assert "Traceback" not in shown
    store = tmp_path / "store"
    assert list((store / "images").glob("*")) == []
    assert [path for path in store.rglob("*") if path.is_file() and path.suffix == ".zst"] == []
    assert finish(process("verify"))[0] == 0


def test_bars_on_a_terminal_only(process: Start, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["snapshot", sandbox, "--agent", "tester"]
    code, out, err = finish(process(*args))
    assert (code, err) == (0, "")
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    running = process(*args, stderr=terminal.theirs)
    assert running.wait(timeout=60) == 0
    assert terminal.read_to_the_end() == ""
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", out)


def test_colours_only_where_they_are_wanted(process: Start, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        terminal = Terminal()
        running = process("show", image, stdout=terminal.theirs)
        assert running.wait(timeout=60) == 0
        return terminal.read_to_the_end()

    assert "\x1b[" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", shown()) is None


def test_unprintable_names_do_not_stop_it(process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "names"
    root.mkdir()
    (root / "naïve ✓").write_text("x")
    monkeypatch.setenv("PYTHONIOENCODING", "iso8859-5")
    code, out, _ = finish(process("snapshot", root, "--agent", "tester"))
    assert code == 0
    code, out, err = finish(process("show", out.strip()))
    assert (code, err) == (0, "")
    assert r"na\xefve \u2713" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(process: Start, shell: str) -> None:
    code, script, err = finish(process("completions", shell))
    assert (code, err) == (0, "")
    assert "_PFIMG_COMPLETE" in script
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=script, text=True, check=True, timeout=60)


def test_completion_of_commands_options_and_ids(process: Start, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(line: str) -> list[str]:
        monkeypatch.setenv("_PFIMG_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        code, out, err = finish(process())
        assert (code, err) == (0, "")
        return [item.partition(",")[2] for item in out.splitlines()]

    assert complete("pfimg sn") == ["snapshot"]
    assert "--repair-from" in complete("pfimg verify --")
    assert complete(f"pfimg show {image[7:10]}") == [image[7:19]]
    assert complete("pfimg --store /nowhere show 0") == [""]  # none, and no trouble
