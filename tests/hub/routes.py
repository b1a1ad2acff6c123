"""Which function answers a request: by method and path, of which the parts are still escaped when they are told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tests.hub.messages import Refusal, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hub.repos import Repo
    from tests.hub.state import Account, State

REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<owner>[^/]+)/(?P<name>[^/]+)"
# Where files are read and git would speak; models have no prefix.
PLACE = r"/(?:(?P<kind>datasets|spaces)/)?(?!api/)(?P<owner>[^/]+)/(?P<name>[^/]+?)"
REVISION = r"/(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Call:
    """A request, who sent it, and what its path names, unescaped."""

    state: State
    request: Request
    account: Account | None
    names: dict[str, str]

    def repo(self, *, write: bool = False) -> Repo:
        names = self.names
        return self.state.repo(names.get("kind", "models"), names["owner"], names["name"], self.account, write=write)


class Routes:
    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Callable[[Call], Reply]]] = []

    def __call__(self, methods: str, path: str) -> Callable[[Callable[[Call], Reply]], Callable[[Call], Reply]]:
        def add(function: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
            self._routes.extend((method, re.compile(path), function) for method in methods.split())
            return function

        return add

    def answer(self, state: State, request: Request, account: Account | None) -> Reply:
        for method, pattern, function in self._routes:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                names = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return function(Call(state, request, account, names))
        raise Refusal(404, f"{request.method} {request.path}: this Hub has no such address")


HUB = Routes()
STORAGE = Routes()
