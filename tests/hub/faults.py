"""What goes wrong on demand, at which requests and how often."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One way to fail, for some of the requests with this method ("" is any) whose path and query match a regular expression.

    With a `status` the request is answered by that, and with `drop` the connection closes without any reply; `applied` says that
    what was asked for has been done all the same. `headers` replace those of the reply. A body is cut after `truncate` bytes, and
    sent at a pace of `drip[0]` bytes every `drip[1]` seconds.
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0  # matching requests that go well before
    status: int | None = None
    drop: bool = False
    applied: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    truncate: int | None = None
    drip: tuple[int, float] | None = None

    def strikes(self, method: str, target: str) -> bool:
        """Whether this request is one that fails; counts it if so."""
        if self.times == 0 or self.method not in ("", method) or not re.search(self.path, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True
