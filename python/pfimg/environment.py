"""The environment document: an image's variables and working directory, with secrets left out.

A variable whose *name* looks like that of a secret is recorded with the value `<redacted>`. Values are not looked at, so a secret
in a variable with a harmless name is recorded: give a pattern for it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pfimg.errors import FormatError

REDACTED: Final = "<redacted>"

# The reference's names, and those that it misses: passphrases, SSH_KEY, AWS_ACCESS_KEY_ID and every other *_KEY and *_KEY_ID.
_SECRET_NAME: Final = re.compile(
    r"(?:^|_)(?:token|secret|password|passphrase|passwd|pwd|api_?key|auth|bearer)(?:_|$)|_key(?:_id)?$", re.IGNORECASE
)
# `pwd` above is for passwords; these two hold directories.
_DIRECTORIES: Final = frozenset({"PWD", "OLDPWD"})


def is_secret(name: str) -> bool:
    """Whether a variable of that name is taken to hold a secret.

    >>> [name for name in ("HF_TOKEN", "SSH_KEY", "PWD", "HOME") if pfimg.environment.is_secret(name)]
    ['HF_TOKEN', 'SSH_KEY']
    """
    return name not in _DIRECTORIES and _SECRET_NAME.search(name) is not None


def build(variables: Mapping[str, str], cwd: str, *, scrub_env: Iterable[str] = (), default_scrub_env: bool = True) -> bytes:
    """Writes the document.

    Args:
        variables: Names and values; nothing is taken from the process's own environment.
        cwd: The working directory to record.
        scrub_env: Regular expressions; a variable whose name any of them matches anywhere is redacted too.
        default_scrub_env: Whether names that look like secrets are redacted.

    Returns:
        Compact JSON, its variables sorted by name.

    Raises:
        FormatError: A pattern is not a regular expression, or a name or value is not valid Unicode.
        TypeError: A name or value is not a str, or `scrub_env` is one.

    Example:
        >>> pfimg.environment.build({"HOME": "/root", "HF_TOKEN": "hf_1"}, "/root")
        b'{"cwd":"/root","kind":"env.v1","vars":{"HF_TOKEN":"<redacted>","HOME":"/root"}}'
    """
    patterns = [_compiled(pattern) for pattern in _no_text(scrub_env)]
    for name, value in variables.items():
        for text in (name, value):
            if not isinstance(text, str):
                raise TypeError(f"environment variable {name!r}: names and values must be str, not {type(text).__name__}")
    scrubbed = {
        name: REDACTED if (default_scrub_env and is_secret(name)) or any(pattern.search(name) for pattern in patterns) else value
        for name, value in sorted(variables.items())
    }
    document = {"cwd": cwd, "kind": "env.v1", "vars": scrubbed}
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        odd = next((name for name, value in variables.items() if not _is_unicode(name + value)), None)
        what = "working directory" if odd is None else f"environment variable {odd!r}"
        raise FormatError(f"{what} is not valid Unicode: leave it out", field=odd or "cwd") from error


def _no_text(patterns: Iterable[str]) -> Iterable[str]:
    # Each letter of a str would be a pattern.
    if isinstance(patterns, str):
        raise TypeError("scrub_env must be a sequence of regular expressions, not one str")
    return patterns


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise FormatError(f"scrub_env: {pattern!r} is not a regular expression: {error}", field="scrub_env") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
