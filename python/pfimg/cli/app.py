"""The frame of the command: options that every subcommand takes, the store they work on, and how results are printed.

Global options stand before or after the subcommand. Results go to stdout, as text or (`--json`) as one document; notes, warnings,
errors and progress bars go to stderr.
"""

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import click

from pfimg import PfStore, config
from pfimg.types import Progress

from .exits import Exit, Failure
from .progress import bar, events


@dataclasses.dataclass
class App:
    """What the global options say."""

    store_dir: Path | None = None
    as_json: bool = False
    debug: bool = False

    def root(self) -> Path:
        """`--store`, else `$PF_STORE`, else `~/.processfork`."""
        return self.store_dir or config.store_path()

    def store(self, *, create: bool = False) -> PfStore:
        """The store; only commands that put something into it may make a new one, so that a typing error does not."""
        root = self.root()
        if not create and not (root / "blobs").is_dir():
            raise Failure(Exit.NOT_FOUND, f"no store at {root}: `pfimg snapshot` makes one, --store names another")
        return PfStore.open(root)

    def progress(self, *, of_registry: bool = False) -> AbstractContextManager[Callable[[Progress], None] | None]:
        """Bars on stderr while the block runs, or with `--json` events of what moves to or from a registry; None otherwise."""
        return events() if of_registry and self.as_json and not sys.stderr.isatty() else bar()

    def emit(self, document: Any, text: str) -> None:
        """Prints a result: with `--json` the document (reports are turned into objects), else the text."""
        if not self.as_json:
            click.echo(text)
        else:
            document = dataclasses.asdict(document) if dataclasses.is_dataclass(type(document)) else document
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))


pass_app = click.make_pass_decorator(App)


def note(text: str) -> None:
    """A remark that is no result."""
    click.echo(text, err=True)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # Not given after the subcommand must not undo what was given before it.
    if value:
        setattr(context.ensure_object(App), str(parameter.name), value)


def _common() -> list[click.Parameter]:
    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, **attributes)

    directory = click.Path(file_okay=False, path_type=Path)
    default = "[default: $PF_STORE, else ~/.processfork]"
    return [
        option("--store", "store_dir", type=directory, metavar="DIR", help=f"The store. {default}"),
        option("--json", "as_json", is_flag=True, help="Print one JSON document, and progress of transfers on stderr."),
        option("--debug", "debug", is_flag=True, help="Print the trace of an error."),
    ]


class Command(click.Command):
    """A subcommand that takes the global options too."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own parameters, then the global ones."""
        return [*super().get_params(ctx), *_common()]


class Group(click.Group):
    """The command itself: subcommands listed by topic, in the order in which they are met."""

    command_class = Command
    topics: ClassVar[dict[str, list[click.Command]]] = {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The global options."""
        return [*super().get_params(ctx), *_common()]

    def add_topic(self, title: str, *commands: click.Command) -> None:
        """Adds subcommands under a heading."""
        self.topics[title] = list(commands)
        for command in commands:
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Names in the order of the topics."""
        return [command.name or "" for commands in self.topics.values() for command in commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the signature is click's
        """One section a topic."""
        for title, commands in self.topics.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(70)) for command in commands])


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"pfimg: {record.levelname.lower()}: {record.getMessage()}")


def speak_warnings() -> None:
    """Shows what the library warns about as one line each, for the rest of the process."""
    logger = logging.getLogger("pfimg")
    logger.addHandler(_Lines(logging.WARNING))
    logger.propagate = False
    warnings.showwarning = lambda message, *_args, **_rest: note(f"pfimg: warning: {message}")
