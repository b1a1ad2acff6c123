"""The effects ledger: what an agent's tools did to the world, chained so that a change is noticed.

A ledger is JSON lines: a header, then one entry per tool call in causal order. Each entry carries `session_hmac`, the HMAC-SHA256
of the previous entry's hash followed by its own (both as hex text; an entry's hash is the SHA-256 of its JSON with an empty
`session_hmac`; before the first there is the empty text). The secret is `PF_SESSION_SECRET`; without it each ledger has a random
one, written into its own header.

Limits, which are those of the format: a secret in the header shows accidents, not attacks, since whoever changes the ledger can
chain it anew. The header's count is outside the chain, so entries can be cut off the end by whoever also corrects the count.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from pfimg import config, timestamps
from pfimg.errors import FormatError, IntegrityError

KIND: Final = "effects.ledger.v1"
EMPTY_HASH: Final = "sha256:" + hashlib.sha256().hexdigest()
"""What stands for a hash that was not recorded: the digest of the empty string."""

_CLASSES: Final = frozenset({"pure", "idempotent", "irreversible", "network-only"})
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FIELDS: Final = ("ts", "tool_id", "args_hash", "idempotency_key", "result_hash", "side_effect_class", "session_hmac")

_log = logging.getLogger("pfimg")


@dataclass(frozen=True, slots=True)
class Effect:
    """One tool call.

    Attributes:
        ts: When it was made: RFC 3339, UTC, `Z`, 0, 3, 6 or 9 fraction digits.
        tool_id: Name of the tool.
        args_hash: `sha256:` digest of its arguments; never a reference to a blob.
        idempotency_key: Key under which the tool does it only once.
        result_hash: `sha256:` digest of its result.
        side_effect_class: `pure`, `idempotent`, `irreversible` or `network-only`.
        session_hmac: Hex HMAC that chains it to the one before.
    """

    ts: str
    tool_id: str
    args_hash: str = EMPTY_HASH
    idempotency_key: str = ""
    result_hash: str = EMPTY_HASH
    side_effect_class: str = "irreversible"
    session_hmac: str = ""

    def to_json(self) -> bytes:
        """The entry's line, without the line's end."""
        return _json({name: getattr(self, name) for name in _FIELDS})

    def hash(self) -> str:
        """SHA-256, as hex, of the entry without its `session_hmac`."""
        return hashlib.sha256(replace(self, session_hmac="").to_json()).hexdigest()


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger that was read.

    Attributes:
        entries: The tool calls in causal order.
        embedded_secret: The secret that the header carries, or None when the ledger was chained with a secret of the operator's.
    """

    entries: tuple[Effect, ...]
    embedded_secret: bytes | None = None

    def verify(self, secret: bytes | None = None) -> Literal["authenticated", "tamper-detection"]:
        """Checks every link of the chain.

        Args:
            secret: The secret to check with; None means the one in the header, else `PF_SESSION_SECRET`.

        Returns:
            What that proves: `authenticated` (only a holder of the secret can have written it), or `tamper-detection` (it was
            not changed by accident: the secret is the header's own).

        Raises:
            IntegrityError: The chain is broken; `.index` is the first entry that does not fit.
            FormatError: No secret is known, or `PF_SESSION_SECRET` is not hex.

        Example:
            >>> ledger = pfimg.effects.build([{"tool_id": "mail"}], secret=b"mine")
            >>> pfimg.effects.parse(ledger).verify(b"mine")
            'authenticated'
        """
        if not self.entries:
            return "tamper-detection"  # nothing is signed, so nothing is proven
        key = _given(secret) or self.embedded_secret or session_secret()
        if key is None:
            raise FormatError("effects ledger: it was chained with an operator's secret: set PF_SESSION_SECRET to it")
        for index, (found, expected) in enumerate(zip(self.entries, _chain(self.entries, key), strict=True)):
            if not hmac.compare_digest(found.session_hmac.lower().encode(), expected.session_hmac.encode()):
                message = f"effects ledger: the chain breaks at entry {index}: it was changed, or chained with another secret"
                raise IntegrityError(message, index=index)
        return "authenticated" if key != self.embedded_secret else "tamper-detection"


def build(effects: Iterable[Mapping[str, object] | Effect] = (), *, secret: bytes | None = None) -> bytes:
    """Writes a ledger.

    Args:
        effects: Tool calls in causal order: mappings with `tool_id` and, optionally, `ts` (or `timestamp`; now when absent),
            `args_hash`, `idempotency_key`, `result_hash`, `side_effect_class`; other keys are left out. An unreadable time
            becomes now, with a warning; hashes that are missing or malformed become the digest of the empty string, a missing or
            unknown class `irreversible`. Entries of a ledger that was read are taken too, and chained anew.
        secret: What to chain with; None means `PF_SESSION_SECRET`, else a random secret that the header carries.

    Returns:
        The ledger's JSON lines.

    Raises:
        FormatError: An entry has no `tool_id`, or `PF_SESSION_SECRET` is not hex.
        TypeError: A value is not a str.

    Example:
        >>> pfimg.effects.build([{"tool_id": "mail"}], secret=b"mine").splitlines()[0]
        b'{"entries":1,"kind":"effects.ledger.v1"}'
    """
    entries = [_entry(asdict(item) if isinstance(item, Effect) else item, index) for index, item in enumerate(effects)]
    header: dict[str, object] = {"entries": len(entries), "kind": KIND}
    key = _given(secret) or session_secret()
    if key is None:
        key = secrets.token_bytes(32)
        header |= {"session_secret_hex": key.hex(), "verification_mode": "tamper-detection"}
    try:
        lines = [_json(header), *(entry.to_json() for entry in _chain(entries, key))]
    except UnicodeEncodeError as error:
        raise FormatError(f"effects ledger: {error.object!r} is not valid Unicode") from error
    return b"".join(line + b"\n" for line in lines)


def parse(data: bytes) -> Ledger:
    """Reads a ledger; `Ledger.verify` checks its chain.

    Args:
        data: JSON lines in any key order, with any unknown keys.

    Raises:
        FormatError: It is not a ledger; `.field` and `.index` say where.

    Example:
        >>> [entry.tool_id for entry in pfimg.effects.parse(pfimg.effects.build([{"tool_id": "mail"}])).entries]
        ['mail']
    """
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        raise FormatError("effects ledger: it has no header")
    header = _object(lines[0], "header")
    if header.get("kind") != KIND:
        raise FormatError(f'effects ledger: kind {header.get("kind")!r} is not "{KIND}"', field="kind")
    count = header.get("entries")
    if count != len(lines) - 1:
        raise FormatError(f"effects ledger: the header tells of {count!r} entries, but {len(lines) - 1} follow", field="entries")
    embedded = header.get("session_secret_hex")
    if embedded is not None:
        embedded = _secret(embedded, "effects ledger: session_secret_hex")
    return Ledger(tuple(_parsed(line, index) for index, line in enumerate(lines[1:])), embedded)


def session_secret() -> bytes | None:
    """The secret in `PF_SESSION_SECRET`, or None when that is unset; FormatError when it is empty or not hex."""
    text = config.session_secret()
    return None if text is None else _secret(text, "PF_SESSION_SECRET")


def _secret(text: object, name: str) -> bytes:
    try:
        secret = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        secret = b""
    if not secret:
        raise FormatError(f"{name} is not a secret in hex: it needs an even number of the digits 0-9 and a-f, at least two")
    return secret


def _given(secret: bytes | None) -> bytes | None:
    # With an empty key anyone could write the chain.
    if secret == b"":
        raise FormatError("effects ledger: the secret is empty")
    return secret


def _chain(entries: Iterable[Effect], key: bytes) -> Iterable[Effect]:
    previous = ""
    for entry in entries:
        this = entry.hash()
        yield replace(entry, session_hmac=hmac.new(key, (previous + this).encode(), hashlib.sha256).hexdigest())
        previous = this


def _entry(item: Mapping[str, object], index: int) -> Effect:
    def text(name: str, default: str) -> str:
        value = item.get(name, default)
        if not isinstance(value, str):
            raise TypeError(f"effects[{index}]: {name} must be a str, not {type(value).__name__}")
        return value

    if not isinstance(item, Mapping):
        raise TypeError(f"effects[{index}] must be a mapping, not {type(item).__name__}")
    if "tool_id" not in item:
        raise FormatError(f"effects[{index}] has no 'tool_id'", field="tool_id", index=index)
    now = timestamps.from_ns(time.time_ns())
    given = text("ts" if "ts" in item else "timestamp", now)
    if (ts := timestamps.normalise(given)) is None:
        _log.warning("effects[%d]: %r is no RFC 3339 time; now is recorded instead", index, given)
        ts = now
    side_effect = text("side_effect_class", "")
    return Effect(
        ts=ts,
        tool_id=text("tool_id", ""),
        args_hash=_digest(text("args_hash", "")),
        idempotency_key=text("idempotency_key", ""),
        result_hash=_digest(text("result_hash", "")),
        side_effect_class=side_effect if side_effect in _CLASSES else "irreversible",
    )


def _digest(text: str) -> str:
    return text if _DIGEST.fullmatch(text) else EMPTY_HASH


def _parsed(line: bytes, index: int) -> Effect:
    what = f"entry {index}"
    item = _object(line, what, index)
    values = {}
    for name in _FIELDS:
        value = item.get(name)
        if not isinstance(value, str):
            raise FormatError(f"effects ledger: {what} has no {name} that is a string", field=name, index=index)
        values[name] = value
    # The chain is over normalised times, whatever the file says.
    ts = timestamps.normalise(values["ts"])
    if ts is None:
        raise FormatError(f"effects ledger: {what}: {values['ts']!r} is no RFC 3339 time", field="ts", index=index)
    return Effect(**values | {"ts": ts})


def _object(line: bytes, what: str, index: int | None = None) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
        _json({"": value})  # refuses lone surrogates, which JSON can spell but UTF-8 cannot
    except (ValueError, RecursionError) as error:
        raise FormatError(f"effects ledger: {what} is not JSON: {error}", index=index) from error
    if not isinstance(value, dict):
        raise FormatError(f"effects ledger: {what} is not a JSON object", index=index)
    return value


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
