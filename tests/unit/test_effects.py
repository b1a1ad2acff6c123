"""The effects ledger: what it writes, what it accepts, what breaks its chain."""

import hashlib
import hmac
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg import effects, timestamps
from pfimg.effects import EMPTY_HASH, Effect
from pfimg.errors import FormatError, IntegrityError

HASH = "sha256:" + "0" * 64
CALLS = [
    {"tool_id": "ls", "ts": "2026-01-01T00:00:00Z", "args_hash": HASH, "idempotency_key": "k", "side_effect_class": "pure"},
    {"tool_id": 'y"\\\u2028\x7f\x01é😀\b\f\n', "ts": "2026-01-02T00:00:00.5Z", "result_hash": "zz", "side_effect_class": "odd"},
]
# Written by processfork 1.0.15 with PF_SESSION_SECRET=00ff.
THEIRS = (
    '{"entries":2,"kind":"effects.ledger.v1"}\n'
    '{"ts":"2026-01-01T00:00:00Z","tool_id":"x","args_hash":"E","idempotency_key":"","result_hash":"E",'
    '"side_effect_class":"irreversible","session_hmac":"adb6ed7f833f1f65d32fa2ef7fcc10851f421f88ac9d233c5314146fe821ffac"}\n'
    '{"ts":"2026-01-01T00:00:00Z","tool_id":"y\\"\\\\\u2028\x7f\\u0001é😀\\b\\f\\n\\t\\r\\u001f/","args_hash":"E",'
    '"idempotency_key":"","result_hash":"E","side_effect_class":"irreversible",'
    '"session_hmac":"6b1e6f8ad7ce7a7b577982506b5b800750a4ce15599fcb2295f71b950e5ecc37"}\n'
).replace('"E"', f'"{EMPTY_HASH}"').encode()  # fmt: skip

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
calls = st.lists(
    st.fixed_dictionaries(
        {"tool_id": text},
        optional={
            "ts": st.integers(0, 10**19).map(timestamps.from_ns),
            "args_hash": st.just(HASH) | text,
            "idempotency_key": text,
            "side_effect_class": st.sampled_from(["pure", "idempotent", "irreversible", "network-only", "other"]),
        },
    ),
    max_size=6,
)


@pytest.fixture(autouse=True)
def _no_session_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PF_SESSION_SECRET", raising=False)


def chained(lines: list[bytes], secret: bytes) -> list[str]:
    """The chain by the format's rule, from the lines alone."""
    codes, previous = [], ""
    for line in lines:
        this = hashlib.sha256(re.sub(rb'"session_hmac":"[^"]*"', b'"session_hmac":""', line)).hexdigest()
        codes.append(hmac.new(secret, (previous + this).encode(), "sha256").hexdigest())
        previous = this
    return codes


def test_a_ledger_of_the_reference_is_written_byte_for_byte() -> None:
    tools = ["x", 'y"\\\u2028\x7f\x01é😀\b\f\n\t\r\x1f/']
    assert effects.build([{"tool_id": tool, "ts": "2026-01-01T00:00:00Z"} for tool in tools], secret=b"\x00\xff") == THEIRS


def test_a_ledger_of_the_reference_verifies() -> None:
    ledger = effects.parse(THEIRS)
    assert ledger.verify(b"\x00\xff") == "authenticated"
    assert ledger.embedded_secret is None
    with pytest.raises(IntegrityError, match="entry 0") as caught:
        ledger.verify(b"\x00\xfe")
    assert caught.value.index == 0


def test_what_is_missing_or_odd_becomes_the_documented_value() -> None:
    first, second = effects.parse(effects.build(CALLS, secret=b"s")).entries
    assert (first.args_hash, first.result_hash, first.side_effect_class) == (HASH, EMPTY_HASH, "pure")
    assert (second.args_hash, second.result_hash, second.side_effect_class) == (EMPTY_HASH, EMPTY_HASH, "irreversible")
    assert (second.ts, second.idempotency_key) == ("2026-01-02T00:00:00.500Z", "")


def test_the_old_name_of_the_time_is_read_and_the_new_one_preferred() -> None:
    old, both = {"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": "2025-01-01T00:00:00Z", "ts": "2026-01-01T00:00:00Z"}
    entries = effects.parse(effects.build([{"tool_id": "x", **times} for times in (old, both)])).entries
    assert [entry.ts for entry in entries] == ["2026-01-01T00:00:00Z"] * 2


def test_an_unreadable_time_becomes_now_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pfimg"):
        (entry,) = effects.parse(effects.build([{"tool_id": "x", "ts": "yesterday"}])).entries
    assert "'yesterday'" in caplog.text
    assert timestamps.normalise(entry.ts) == entry.ts
    caplog.clear()
    effects.build([{"tool_id": "x"}])
    assert not caplog.records


@given(calls, st.binary(min_size=1, max_size=80))
def test_any_ledger_is_chained_by_the_rule_and_read_back(given_calls: list[dict[str, Any]], secret: bytes) -> None:
    data = effects.build(given_calls, secret=secret)
    header, *lines = data.split(b"\n")[:-1]
    assert json.loads(header) == {"entries": len(given_calls), "kind": "effects.ledger.v1"}
    assert [json.loads(line)["session_hmac"] for line in lines] == chained(lines, secret)
    ledger = effects.parse(data)
    assert [entry.tool_id for entry in ledger.entries] == [call["tool_id"] for call in given_calls]
    assert ledger.verify(secret) == ("authenticated" if given_calls else "tamper-detection")
    assert effects.build(ledger.entries, secret=secret) == data


@given(st.integers(0, 1), st.sampled_from(["ts", "tool_id", "idempotency_key", "args_hash", "result_hash", "side_effect_class"]))
def test_any_change_breaks_the_chain_there(index: int, field: str) -> None:
    header, *lines = effects.build(CALLS, secret=b"s").split(b"\n")[:-1]
    entry = json.loads(lines[index])
    entry[field] = "2000-01-01T00:00:00Z" if field == "ts" else "changed"
    lines[index] = json.dumps(entry).encode()
    with pytest.raises(IntegrityError, match=f"entry {index}:") as caught:
        effects.parse(b"\n".join([header, *lines])).verify(b"s")
    assert caught.value.index == index


def test_entries_that_change_places_break_the_chain() -> None:
    header, first, second, _ = effects.build(CALLS, secret=b"s").split(b"\n")
    with pytest.raises(IntegrityError, match="entry 0"):
        effects.parse(b"\n".join([header, second, first])).verify(b"s")


def test_without_a_secret_the_header_carries_a_random_one() -> None:
    first, second = (effects.parse(effects.build(CALLS)) for _ in range(2))
    assert first.embedded_secret != second.embedded_secret
    assert first.embedded_secret is not None
    assert len(first.embedded_secret) == 32
    assert first.verify() == first.verify(first.embedded_secret) == "tamper-detection"
    header = json.loads(effects.build([]).splitlines()[0])
    assert list(header) == ["entries", "kind", "session_secret_hex", "verification_mode"]
    assert header["verification_mode"] == "tamper-detection"


def test_the_operator_s_secret_is_used_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_SESSION_SECRET", " 00Ff\n")
    data = effects.build(CALLS)
    assert b"session_secret_hex" not in data
    assert effects.parse(data).verify() == effects.parse(data).verify(b"\x00\xff") == "authenticated"
    monkeypatch.delenv("PF_SESSION_SECRET")
    with pytest.raises(FormatError, match="set PF_SESSION_SECRET"):
        effects.parse(data).verify()


@pytest.mark.parametrize("secret", ["", "zz", "0", "0x00"])
def test_a_malformed_secret_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("PF_SESSION_SECRET", secret)
    with pytest.raises(FormatError, match="PF_SESSION_SECRET is not a secret in hex"):
        effects.build([])
    with pytest.raises(FormatError, match="empty"):
        effects.build([], secret=b"")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ({}, FormatError, r"effects\[1\] has no 'tool_id'"),
        ({"tool_id": 1}, TypeError, r"effects\[1\]: tool_id must be a str, not int"),
        ({"tool_id": "x", "ts": None}, TypeError, "ts must be a str"),
        ({"tool_id": "x", "args_hash": 7}, TypeError, "args_hash must be a str"),
        ({"tool_id": "x", "idempotency_key": 7}, TypeError, "idempotency_key must be a str"),
        ({"tool_id": "x", "side_effect_class": 7}, TypeError, "side_effect_class must be a str"),
        ({"tool_id": "\ud800"}, FormatError, "not valid Unicode"),
        ("x", TypeError, r"effects\[1\] must be a mapping"),
    ],
)
def test_a_malformed_call_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        effects.build([{"tool_id": "fine"}, call])


HEADER = b'{"kind":"effects.ledger.v1","entries":1}\n'
ENTRY = Effect(ts="2026-01-01T00:00:00Z", tool_id="x").to_json()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", None),
        (b"\n\n", None),
        (b"junk\n", None),
        (b"[1]\n", None),
        (b'{"kind":"other","entries":0}\n', "kind"),
        (b'{"entries":0}\n', "kind"),
        (HEADER, "entries"),
        (HEADER + ENTRY + b"\n" + ENTRY, "entries"),
        (b'{"kind":"effects.ledger.v1","entries":0,"session_secret_hex":"zz"}', None),
        (b'{"kind":"effects.ledger.v1","entries":0,"session_secret_hex":7}', None),
        (HEADER + b"{", None),
        (HEADER + b"[" * 100_000, None),
        (HEADER + ENTRY.replace(b'"x"', b'"\\ud800"'), None),
        (HEADER + ENTRY.replace(b'"x"', b'"\xff"'), None),
        (HEADER + ENTRY.replace(b'"x"', b"7"), "tool_id"),
        (HEADER + ENTRY.replace(b"2026", b"junk"), "ts"),
        (HEADER + ENTRY.replace(b'"session_hmac"', b'"other"'), "session_hmac"),
    ],
)
def test_a_malformed_ledger_is_refused_by_name(data: bytes, field: str | None) -> None:
    with pytest.raises(FormatError, match="effects ledger") as caught:
        effects.parse(data)
    assert caught.value.field == field


def test_key_order_unknown_keys_blank_lines_and_odd_times_are_read() -> None:
    header, line, _ = effects.build(CALLS[:1], secret=b"s").split(b"\n")
    entry = json.loads(line)
    entry["ts"] = "2026-01-01T01:00:00.000+01:00"
    entry["session_hmac"] = entry["session_hmac"].upper()
    turned = json.dumps({"more": 1, **dict(reversed(entry.items()))}).encode()
    ledger = effects.parse(header.replace(b"{", b'{"more":[],') + b"\r\n\n" + turned)
    assert ledger.verify(b"s") == "authenticated"
