"""The command `pfimg`: arguments and printing only; what it does is done by the package.

`app` is the frame, `exits` the codes and the errors; `images`, `registry`, `prefill`, `keys`, `upkeep`, `bench` and `completions`
hold the subcommands; the rest reads arguments (`ids`, `units`, `npy`) or draws (`contents`, `draw`, `lineage`, `progress`).
Results are printed when they are complete: a command that is interrupted has printed none.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from pfimg import __version__

from .app import App, Group, note, speak_warnings
from .bench import bench
from .completions import answer, completions
from .exits import Exit, Failure, code_of, line_of
from .images import checkout, diff, ls, rm, show, snapshot
from .keys import keygen
from .prefill import export, warm
from .registry import clone, copy, exists, pull, push, signature
from .upkeep import gc, stats, verify

__all__ = ["main", "run"]


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pfimg", message="%(prog)s %(version)s")
@click.pass_context
def command(context: click.Context) -> None:
    """Images of running models and agents: KV pages and directories as verified, content-addressed blobs.

    An IMAGE is an id or the first digits of one. A REF is the address of an image in a registry, such as file:///abs/dir.
    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 integrity or signature.
    """
    if context.invoked_subcommand is None:
        note(context.get_help())
        raise Failure(Exit.USAGE)


command.add_topic("Images", snapshot, ls, show, checkout, diff, rm)
command.add_topic("Registries", push, pull, clone, copy, exists, signature, keygen)
command.add_topic("Caches of engines", export, warm)
command.add_topic("Upkeep", verify, gc, stats, bench, completions)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command in a process of its own: sets that up, and returns the exit code."""
    speak_warnings()
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal knows every file name
    return run(sys.argv[1:] if args is None else args)


def run(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code; whatever goes wrong is told on stderr."""
    app = App()
    try:
        if instruction := os.environ.get("_PFIMG_COMPLETE"):
            return answer(command, instruction)
        with command.make_context("pfimg", list(args), obj=app) as context:
            command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        _drop_output()  # whoever reads has seen enough
        return Exit.PIPE_CLOSED
    except KeyboardInterrupt:
        note("pfimg: interrupted")
        return Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends as one line
        if app.debug:
            traceback.print_exception(error)
        if line := line_of(error):
            note(f"pfimg: error: {line}")
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return code_of(error)
    return Exit.DONE


def _drop_output() -> None:
    """Forgets what stdout could not write: it would fail again at the end of the interpreter, which makes that the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C does: the call that runs cleans up behind itself.
    raise SystemExit(128 + number)
