"""How long an answer asks to wait."""

from __future__ import annotations

import httpx
import pytest

from pfimg.registries.retries import pause_asked_for

USED_UP = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
        (429, {"Retry-After": "soon"}, None),
        (429, USED_UP, 55),
        (429, USED_UP | {"Retry-After": "7"}, 7),
        (503, USED_UP, None),  # the window tells nothing of why the server fails
        (429, {"RateLimit": '"api";r=3;t=55'}, None),
        (429, {"RateLimit": '"api" ; r=0 ; t=1'}, 1),
        (429, {"RateLimit": "r=0"}, None),
    ],
)
def test_the_pause_that_is_asked_for(status: int, headers: dict[str, str], seconds: float | None) -> None:
    assert pause_asked_for(status, httpx.Headers(headers)) == seconds
