"""Chunks of answers, merged as they come, are read by h11 as they are when they come unmerged."""

import itertools

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pfimg.registries.connections import _Chunks

chunks = st.lists(st.binary(min_size=1, max_size=60), max_size=12)
chunks |= st.integers(1, 20).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), max_size=12))
cuts = st.lists(st.integers(0, 1500), max_size=25)

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def encoded(contents: list[bytes], extension: bytes = b"") -> bytes:
    lines = [b"%x%b\r\n%b\r\n" % (len(content), extension, content) for content in contents]
    return b"".join([*lines, b"0\r\nX-Stream-Error: none\r\n\r\n"])


def merged(stream: bytes, cuts: list[int]) -> bytes:
    merger = _Chunks()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return b"".join(merger.merge(stream[start:end]) for start, end in itertools.pairwise(places))


def read(stream: bytes) -> tuple[bytes, str]:
    """The body, and how it ends."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "here")]))
    client.send(h11.EndOfMessage())
    client.receive_data(stream)
    client.receive_data(b"")
    body = b""
    try:
        while True:
            match client.next_event():
                case h11.Data(data=data):
                    body += bytes(data)
                case h11.EndOfMessage():
                    return body, "whole"
    except h11.RemoteProtocolError:
        return body, "refused"


@settings(deadline=None)
@given(contents=chunks, cuts=cuts, interim=st.booleans(), extension=st.sampled_from([b"", b";name=value"]))
def test_merged_chunks_are_the_same_body(contents: list[bytes], cuts: list[int], interim: bool, extension: bytes) -> None:
    stream = (b"HTTP/1.1 103 Early Hints\r\n\r\n" if interim else b"") + HEAD + encoded(contents, extension)
    assert read(merged(stream, cuts)) == (b"".join(contents), "whole")


@settings(deadline=None)
@given(contents=chunks, cuts=cuts, end=st.integers(0, 900))
def test_what_is_cut_off_stays_so(contents: list[bytes], cuts: list[int], end: int) -> None:
    stream = (HEAD + encoded(contents))[:-1][: len(HEAD) + end]
    body, outcome = read(merged(stream, cuts))
    assert outcome == "refused"
    assert b"".join(contents).startswith(body)


@settings(deadline=None)
@given(contents=chunks, cuts=cuts, at=st.integers(0, 900), byte=st.integers(0, 255))
@example(contents=[b"ab"], cuts=[], at=5, byte=ord("x"))
def test_what_is_malformed_is_refused_where_it_was(contents: list[bytes], cuts: list[int], at: int, byte: int) -> None:
    damaged = bytearray(encoded(contents))
    damaged[at % len(damaged)] = byte
    plain = read(HEAD + bytes(damaged))
    assert read(merged(HEAD + bytes(damaged), cuts))[1] == plain[1]
    if plain[1] == "whole":
        assert read(merged(HEAD + bytes(damaged), cuts)) == plain


@settings(deadline=None)
@given(body=st.binary(max_size=200), cuts=cuts)
def test_other_bodies_pass_as_they_are(body: bytes, cuts: list[int]) -> None:
    stream = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert merged(stream, cuts) == stream
