"""Exit codes, and errors as one line: what went wrong, where, and what to do about it."""

import errno
from enum import IntEnum

import click

from pfimg.errors import BadRef, BlobNotFound, IntegrityError, PfimgError, SignatureError, UnsupportedScheme

from .units import visible


class Exit(IntEnum):
    """How the command ends. Scripts may rely on these."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    INTEGRITY = 4
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    PIPE_CLOSED = 141  # 128 + SIGPIPE


class Failure(Exception):  # noqa: N818 - some are no error: `exists` found nothing
    """An end that the command decides itself. An empty message prints nothing: the report has said it already."""

    def __init__(self, code: Exit, message: str = "") -> None:
        super().__init__(message)
        self.code = code


# The first class that fits decides; the advice follows the message of the library, which names the item.
_CLASSES: tuple[tuple[type[BaseException], Exit, str], ...] = (
    (SignatureError, Exit.INTEGRITY, ""),
    (IntegrityError, Exit.INTEGRITY, "`pfimg verify --repair-from REF` heals the store from a registry"),
    (BlobNotFound, Exit.NOT_FOUND, "`pfimg verify` lists what is missing, `pfimg pull` fetches it again"),
    (BadRef, Exit.USAGE, ""),
    (UnsupportedScheme, Exit.USAGE, ""),
    (FileNotFoundError, Exit.NOT_FOUND, ""),
    (FileExistsError, Exit.FAILED, "choose another place, or remove it first"),
    (PermissionError, Exit.FAILED, "its owner can change that with chmod"),
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def code_of(error: BaseException) -> Exit:
    """The exit code for an error."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, click.ClickException):
        return Exit.USAGE if isinstance(error, click.UsageError) else Exit.FAILED
    return next((code for kind, code, _ in _CLASSES if isinstance(error, kind)), Exit.FAILED)


def line_of(error: BaseException) -> str:
    """The error as one line; empty when there is nothing left to say."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "pfimg"
        message = error.format_message().rstrip(".")
        return _one_line(f"{message[:1].lower()}{message[1:]} (see `{path} --help`)")
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    if not isinstance(error, Failure | PfimgError | OSError | ValueError):
        return _one_line(f"{type(error).__name__}: {error} (a defect of pfimg: --debug shows where)")
    message, advice = str(error), next((advice for kind, _, advice in _CLASSES if isinstance(error, kind)), "")
    if isinstance(error, OSError):
        if error.errno in _DISK_FULL:
            advice = "free some space: `pfimg gc` removes what no image needs"
        if error.strerror:
            message = f"{error.filename}: {error.strerror.lower()}" if error.filename is not None else error.strerror.lower()
    return _one_line(f"{message} ({advice})" if advice else message)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
