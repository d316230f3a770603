"""Backoff shared by all download threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from avomni_lib.errors import AvomniError
from avomni_lib.plan import minutes

T = TypeVar("T")

FIRST_WAIT_S = 1.0
MAX_WAIT_S = 60.0
# Tries without any progress before giving up: about four minutes.
NUM_TRIES = 10
# The hub's rate limit is per 5 minutes; longer waits than this are not accepted.
MAX_RETRY_AFTER_S = 900.0
LOOK_EVERY_S = 0.1


class Stopped(Exception):
    """The work was stopped from outside."""


class Retry(Exception):
    """A request failed and may succeed later.

    Args:
        explained: The error to raise if it keeps failing.
        retry_after_s: The wait requested by the hub.
        is_for_all: Whether all requests are refused, not only this one.
        is_unreached: Whether no connection could be established.
    """

    def __init__(
        self,
        explained: AvomniError,
        retry_after_s: float | None = None,
        is_for_all: bool = False,
        is_unreached: bool = False,
    ):
        self.explained, self.is_unreached = explained, is_unreached
        self.retry_after_s, self.is_for_all = retry_after_s, is_for_all


class Backoff:
    """Exponential backoff: after a refusal all threads wait, then a single one tries first.

    Args:
        first_s: Wait after the first refusal if the hub requests none; doubles with each refusal.
        num_tries: Number of consecutive refusals before giving up.
    """

    def __init__(self, first_s: float = FIRST_WAIT_S, num_tries: int = NUM_TRIES):
        self.first_s, self.num_tries = first_s, num_tries
        self._changed = threading.Condition()  # of an RLock: `refused` calls `hold`
        # A turn is the number of refusals known when it was taken. Responses to requests sent
        # before the latest refusal are ignored.
        self._turn, self._num_in_a_row = 0, 0
        self._until_s, self._is_tried = 0.0, False

    @property
    def note(self) -> str:
        """Text for a bar: `the hub asks to wait: 12 s`, or empty."""
        left = self._until_s - time.monotonic()
        return f"the hub asks to wait: {minutes(left)}" if left > 0 else ""

    def take_turn(self, stop: threading.Event | None = None) -> int:
        """Block until this thread may send a request; the result is passed to `refused` or `ended`.

        Raises:
            Stopped: `stop` was set.
        """
        with self._changed:
            while True:
                check(stop)
                left = self._until_s - time.monotonic()
                if left <= 0 and not self._is_tried:
                    self._is_tried = self._num_in_a_row > 0
                    return self._turn
                self._changed.wait(min(left, LOOK_EVERY_S) if left > 0 else LOOK_EVERY_S)

    def ended(self, turn: int, is_answered: bool) -> None:
        """Report that the request of a turn has succeeded, or has failed without a refusal."""
        with self._changed:
            if turn == self._turn:
                self._is_tried = False
                self._num_in_a_row = 0 if is_answered else self._num_in_a_row
            self._changed.notify_all()

    def hold(self, wait_s: float) -> None:
        """Let all threads wait this long, because the hub's rate limit is used up."""
        with self._changed:
            self._until_s = max(self._until_s, time.monotonic() + min(wait_s, MAX_RETRY_AFTER_S))

    def refused(self, turn: int, retry_after_s: float | None) -> bool:
        """Report that the hub refused a request; returns whether to try again."""
        with self._changed:
            if turn == self._turn:
                self._turn, self._num_in_a_row = self._turn + 1, self._num_in_a_row + 1
                self._is_tried = False
            wait_s = self.wait_s(self._num_in_a_row) if retry_after_s is None else retry_after_s
            self.hold(wait_s)
            self._changed.notify_all()
            return self._num_in_a_row < self.num_tries and wait_s <= MAX_RETRY_AFTER_S

    def call(self, ask: Callable[[], T], stop: threading.Event | None = None) -> T:
        """Call `ask`, and call it again as long as it raises Retry.

        Raises:
            AvomniError: it has failed for too long.
            Stopped: `stop` was set.
        """
        num_tries = 0
        while True:
            turn = self.take_turn(stop)
            try:
                answer = ask()
            except Retry as retry:
                num_tries += 1
                goes_on = num_tries < self.num_tries
                if retry.is_for_all:
                    goes_on = self.refused(turn, retry.retry_after_s) and goes_on
                else:
                    self.ended(turn, is_answered=False)
                if not goes_on:
                    raise retry.explained from None
                if not retry.is_for_all:
                    self.pause(num_tries, stop)
            except BaseException:
                self.ended(turn, is_answered=False)
                raise
            else:
                self.ended(turn, is_answered=True)
                return answer

    def wait_s(self, num_tries: int) -> float:
        """The wait after this many failed tries."""
        return min(self.first_s * 2.0 ** (num_tries - 1), MAX_WAIT_S)

    def pause(self, num_tries: int, stop: threading.Event | None = None) -> None:
        """Let this thread wait after `num_tries` failed tries; raises Stopped as `check`."""
        (stop or threading.Event()).wait(self.wait_s(num_tries))
        check(stop)


def check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped
