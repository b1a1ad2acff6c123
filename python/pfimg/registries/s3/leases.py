"""Leases: how pushes to a bucket and garbage collection of it keep apart, where there are no locks.

A lease is a small object below `pfimg/leases/`. Whoever takes one writes it first and then lists the others. So of two that take
leases at once, at least one sees the other, since buckets show in a listing whatever was written before it. Pushes share: each
has a lease of its own from before it looks what is there until its image is visible, and waits only while a sweep has one. A
sweep has one while it marks and removes, a minute at most; when it sees anybody else's it gives its own back and tries again
later. Hence nothing is removed between a push's look at a blob and its image being a root.

A killed process leaves its lease, which counts for as long as its kind of work may take. Ages are told by the service's clock
alone: from the time of one's own lease to that of another. A push that took longer takes a new lease, and looks again what is
there, before it shows its image. A sweep sends nothing any more long before its lease could be taken for a dead one's.

Limits: a process that stands still between the check of its lease and the request that follows, for longer than the margins
below, is not noticed. Programs that know nothing of leases are protected by the grace period alone.
"""

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from pfimg.errors import BackendError
from pfimg.registries.s3.bucket import Bucket
from pfimg.registries.workers import Workers

T = TypeVar("T")

LEASES: Final = "pfimg/leases"

_log = logging.getLogger("pfimg")

_PUSH: Final = "push"
_SWEEP: Final = "sweep"
# For so long a lease counts, in seconds.
_LIFE: Final = {_PUSH: 3600.0, _SWEEP: 600.0}
# A push shows its image, and a sweep sends its last request, no later than this after the lease was taken. What is left covers
# the request itself and its repetitions.
_PUSH_SECONDS: Final = 3000.0
_SWEEP_SECONDS: Final = 60.0
# So long is waited for a lease to be given back after an error.
_MOMENT: Final = 0.5
# Between two looks at others' leases.
_POLL: Final = 0.2
# A sweep gives up when it has not been alone for so long.
_PATIENCE: Final = 300.0


class Leases:
    """The leases of one bucket, as one process takes them.

    Args:
        bucket: Where.
        workers: Make the requests, so that Ctrl-C is answered meanwhile.
        name: Of the place, for messages.
    """

    def __init__(self, bucket: Bucket, workers: Workers, name: str) -> None:
        self._bucket = bucket
        self._workers = workers
        self._name = name
        self._own = ""
        self._until = 0.0
        self._is_removing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While it lasts, nothing is swept, for up to an hour: see `renew`."""
        self._own = f"{LEASES}/{_PUSH}-{secrets.token_hex(8)}"
        try:
            self._call(self._share)
            yield
        except BaseException:
            self._drop()
            raise
        self._call(self._give_back)

    def renew(self) -> bool:
        """Whether the shared lease was so old that it had to be taken anew: what was looked at before need not be there now."""
        if not self._own or time.monotonic() < self._until:
            return False
        self._call(self._share)
        return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until nobody pushes or sweeps, and keeps pushes waiting while it lasts."""
        try:
            self._be_alone()
            yield
        except BaseException:
            if not self._is_removing:  # otherwise a request may still be on its way; the lease will die by itself
                self._drop()
            raise
        self._call(self._give_back)

    @contextmanager
    def removing(self) -> Iterator[Callable[[], None]]:
        """Around requests that remove, in an exclusive lease; gives what is to be called before each of them."""

        def check() -> None:
            if time.monotonic() > self._until:
                raise BackendError(f"{self._name}: the service is too slow to sweep it: try again later", retryable=True)

        self._is_removing = True
        yield check
        self._is_removing = False

    def _call(self, request: Callable[[], T]) -> T:
        ((_, result),) = self._workers.map(lambda _: request(), [None])
        return result

    def _share(self) -> None:
        self._write(_PUSH_SECONDS)
        while _SWEEP in self._others():
            if self._workers.pause(_POLL):
                raise BackendError(f"{self._name}: the call has ended")

    def _be_alone(self) -> None:
        give_up = time.monotonic() + _PATIENCE
        while not self._call(self._sweep):
            if time.monotonic() > give_up:
                message = f"{self._name}: others have been pushing for {_PATIENCE:.0f} seconds: try again later"
                raise BackendError(message, code="busy", retryable=True)
            self._workers.pause(random.uniform(2 * _POLL, 4 * _POLL))  # noqa: S311 - jitter needs no secrecy

    def _sweep(self) -> bool:
        """Tries to take an exclusive lease."""
        self._own = f"{LEASES}/{_SWEEP}-{secrets.token_hex(8)}"
        self._write(_SWEEP_SECONDS)
        if self._others():
            self._give_back()
            return False
        return True

    def _write(self, seconds: float) -> None:
        self._written = time.monotonic()
        self._until = self._written + seconds
        try:
            self._bucket.put(self._own, b"{}\n")
        except BackendError as error:
            if not error.retryable:
                self._own = ""  # it was refused, so that there is nothing to give back
            raise

    def _others(self) -> list[str]:
        """Kinds of the leases that others have."""
        found = {entry.key: entry.modified for page in self._bucket.entries(LEASES) for entry in page}
        if self._own not in found:
            raise BackendError(f"{self._bucket.show(self._own)}: it was put, but is not listed: try again later", retryable=True)
        now = found.pop(self._own) + (time.monotonic() - self._written)
        kinds = {key: key.rpartition("/")[2].partition("-")[0] for key in found}
        ages = {key: now - modified for key, modified in found.items()}
        for key in [key for key, age in ages.items() if age > 2 * _LIFE.get(kinds[key], 0)]:
            self._bucket.delete(key)
        return [kinds[key] for key, age in ages.items() if age <= _LIFE.get(kinds[key], 0)]

    def _drop(self) -> None:
        """Gives the lease back without waiting for that: it may be the service that has failed, or somebody wants an end."""
        if not self._own:
            return
        dropping = threading.Thread(target=self._bucket.forget, args=(self._own,), name="pfimg-lease", daemon=True)
        self._own = ""
        dropping.start()
        dropping.join(_MOMENT)

    def _give_back(self) -> None:
        own, self._own = self._own, ""
        try:
            self._bucket.delete(own)
        except BackendError as error:
            # Who may not delete leaves it to age.
            _log.debug("%s stays: %s", self._bucket.show(own), error)
