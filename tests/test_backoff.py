"""Backoff shared by the download threads, and the waits that response headers state."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from avomni_lib.dataset.download import responses
from avomni_lib.dataset.download.backoff import MAX_WAIT_S, Backoff, Retry, Stopped
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import OtherContent
from avomni_lib.errors import AvomniError

BUSY = AvomniError("too busy")


def test_waits_double_up_to_a_minute():
    backoff = Backoff()
    waits = [backoff.wait_s(num) for num in range(1, backoff.num_tries)]
    assert waits[:4] == [1, 2, 4, 8] and max(waits) == MAX_WAIT_S == 60
    assert 180 < sum(waits) < 300


def test_simultaneous_refusals_count_once():
    """Eight refusals of requests sent at the same time are not eight in a row."""
    backoff = Backoff(first_s=0.0, num_tries=3)
    turns = [backoff.take_turn() for _ in range(8)]
    assert all(backoff.refused(turn, None) for turn in turns)
    # An answer to a request that was sent before the refusal does not reset the count.
    backoff.ended(turns[0], is_answered=True)
    assert backoff.refused(backoff.take_turn(), None)
    assert not backoff.refused(backoff.take_turn(), None)


def test_another_error_releases_the_turn():
    backoff = Backoff(first_s=0.0)
    backoff.refused(backoff.take_turn(), None)

    def fail() -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        backoff.call(fail)
    assert backoff.call(lambda: "answer") == "answer"


def test_one_refused_file_does_not_delay_others():
    backoff = Backoff(first_s=5.0)
    stop = threading.Event()

    def refuse() -> None:
        raise Retry(BUSY)

    def fetch_refused_file() -> None:
        with pytest.raises(Stopped):
            backoff.call(refuse, stop)

    thread = threading.Thread(target=fetch_refused_file)
    thread.start()
    time.sleep(0.05)
    assert backoff.call(lambda: "other") == "other" and backoff.note == ""
    stop.set()
    thread.join()


def test_stop_event_ends_every_wait():
    backoff, stop = Backoff(first_s=60.0), threading.Event()
    backoff.refused(backoff.take_turn(), 60.0)
    assert backoff.note == "the hub asks to wait: 60 s"
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        backoff.take_turn(stop)
    with pytest.raises(Stopped):
        backoff.pause(1, stop)


def test_hold_delays_the_next_request():
    backoff = Backoff()
    backoff.hold(0.2)
    began = time.monotonic()
    backoff.take_turn()
    assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": " 7 "}, 7),
        (429, {"Retry-After": "soon"}, None),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (429, {"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 55),
        (429, {"RateLimit": '"api";r=12;t=55', "Retry-After": "7"}, 7),
        (503, {"RateLimit": '"api";r=0;t=55'}, None),
    ],
)
def test_wait_is_read_from_response_headers(
    status: int, headers: dict[str, str], seconds: int | None
):
    assert responses.retry_after_s(status, headers) == seconds


def test_retry_after_date_is_a_wait_until_that_date():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < responses.retry_after_s(429, {"Retry-After": date}) <= 90


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"RateLimit": '"resolvers";r=4999;t=300'}, 0),
        ({"RateLimit": '"resolvers";r=0;t=12'}, 12),
        ({"RateLimit": '"pages"; r = 0 ; t = 12'}, 12),
    ],
)
def test_exhausted_rate_limit_gives_a_wait(headers: dict[str, str], seconds: int):
    assert responses.rate_limit_s(headers) == seconds


FILE = RemoteFile("a.zip", 100, "ab" * 32)


@pytest.mark.parametrize(
    ("status", "content_range", "etag", "first"),
    [
        (200, "", "", 0),
        (206, "bytes 40-99/100", "", 40),
        (206, "bytes 40-99/100", f'"{"ab" * 32}"', 40),
        (206, "bytes 40-99/100", f'W/"{"ab" * 32}"', 40),
        (206, "bytes 40-99/100", '"a-mirrors-own"', 40),
    ],
)
def test_first_byte_follows_the_content_range(
    status: int, content_range: str, etag: str, first: int
):
    headers = {"Content-Range": content_range} if content_range else {}
    assert responses.first_byte(status, headers, {"ETag": etag}, FILE, 40) == first


@pytest.mark.parametrize(
    ("content_range", "headers"),
    [
        ("bytes 0-99/100", {}),
        ("bytes 40-98/99", {}),
        ("", {}),
        ("bytes 40-99/100", {"X-Linked-ETag": f'"{"cd" * 32}"', "ETag": '"x"'}),
        ("bytes 40-99/100", {"ETag": f'"{"cd" * 32}"'}),
    ],
)
def test_body_of_another_range_or_file_is_refused(content_range: str, headers: dict[str, str]):
    with pytest.raises(OtherContent):
        responses.first_byte(206, {"Content-Range": content_range}, headers, FILE, 40)
