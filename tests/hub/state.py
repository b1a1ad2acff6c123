"""All that the Hub keeps, and who may see it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from tests.hub.limits import Limits
from tests.hub.messages import Refusal, Request
from tests.hub.objects import Objects
from tests.hub.repos import Repo

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Account:
    user: str
    role: str  # "read" or "write"


class State:
    """Answering functions hold `lock`."""

    url: str
    storage_url: str

    def __init__(self, root: Path) -> None:
        self.lock = threading.RLock()
        self.objects = Objects(root)
        self.clear()

    def clear(self) -> None:
        with self.lock:
            self.repos: dict[tuple[str, str, str], Repo] = {}
            self.accounts: dict[str, Account] = {}
            self.limits = Limits()
            self._windows: dict[str, tuple[float, int]] = {}  # by quota: when it began, requests since
            self.objects.clear()

    def create(self, kind: str, owner: str, name: str, *, private: bool) -> Repo:
        repo = self.repos[kind, owner, name] = Repo(kind, owner, name, private=private)
        return repo

    def account(self, request: Request) -> Account | None:
        credentials = request.headers.get("Authorization")
        if credentials is None:
            return None
        account = self.accounts.get(credentials.removeprefix("Bearer "))
        if account is None:
            # The client takes a 401 for a repository that is not there, unless it says this.
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def repo(self, kind: str, owner: str, name: str, account: Account | None, *, write: bool = False) -> Repo:
        """A repository that the account may read, or write to. Others' private ones are not told from those that do not exist."""
        repo = self.repos.get((kind, owner, name))
        if repo is None or (repo.private and (account is None or account.user != owner)):
            raise self.unknown() if account is None else Refusal(404, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(owner, account)
        return repo

    def check_write(self, owner: str, account: Account | None) -> None:
        if account is None:
            raise self.unknown()
        if account.role != "write" or account.user != owner:
            raise Refusal(403, f"this token may not write to repositories of {owner}")

    @staticmethod
    def unknown() -> Refusal:
        # Over https the client takes any 401 at a repository for one that is not there. It looks at the scheme for that, so here
        # the code says it.
        return Refusal(401, "Invalid username or password.", "RepoNotFound", {"WWW-Authenticate": 'Bearer realm="Hub"'})

    def download_url(self, sha256: str) -> str:
        return self.storage_url + self.objects.signed(f"/content/{sha256}")

    def count(self, kind: str) -> dict[str, str]:
        """Counts a request; gives the headers that tell what is left, or refuses it."""
        quota = self.limits.quotas[kind]
        now = time.monotonic()
        began, used = self._windows.get(kind, (now, 0))
        if now - began >= quota.seconds:
            began, used = now, 0
        self._windows[kind] = began, used + 1
        reset = ceil(began + quota.seconds - now)
        headers = {
            "RateLimit": f'"{kind}";r={max(0, quota.requests - used - 1)};t={reset}',
            "RateLimit-Policy": f'"fixed window";"{kind}";q={quota.requests};w={quota.seconds}',
        }
        if used >= quota.requests:
            raise Refusal(429, "too many requests", headers=headers | {"Retry-After": str(reset)})
        return headers
