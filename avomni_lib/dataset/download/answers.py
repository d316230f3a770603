"""What the headers of a hub's answer say: how long to wait, and where in the file a body starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import OtherContent
from avomni_lib.dataset.names import shown

# `RateLimit: "resolvers";r=0;t=55`: requests left, seconds until the count starts anew.
RATE_LIMIT = re.compile(r"\br\s*=\s*([0-9]{1,18})\s*;\s*t\s*=\s*([0-9]{1,18})")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


def told_s(status: int, headers: Mapping[str, str]) -> float | None:
    """The wait that a refusal names, by RateLimit or Retry-After (RFC 9110, 10.2.3), or None."""
    if status == 429 and (quiet := quiet_s(headers)):
        return quiet
    told = headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return max((parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, ArithmeticError, LookupError):
        return None


def quiet_s(headers: Mapping[str, str]) -> float:
    """Seconds until the hub takes requests again, where it says that it takes no more now."""
    found = RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(found[2]) if found and found[1] == "0" else 0.0


def first_byte(
    status: int,
    headers: Mapping[str, str],
    own_headers: Mapping[str, str],
    remote: RemoteFile,
    start: int,
) -> int:
    """Where in the file the body starts: at `start`, or at 0 where the range was ignored.

    If-Range would be of no use: the hub's ETag is not that of the host to which it redirects. The
    address names the commit instead, and the whole is hashed at the end.

    Args:
        own_headers: Of the hub's own answer, before it redirected.

    Raises:
        OtherContent: it is not the listed file.
    """
    etag = own_headers.get("X-Linked-ETag") or own_headers.get("ETag") or ""
    etag = etag.removeprefix("W/").strip('"')
    # Another kind of ETag, a mirror's, says nothing.
    if len(etag) == len(remote.content_id or "") and etag != remote.content_id:
        raise OtherContent(f"its hash at the source is now {shown(etag)}")
    if status != 206:
        return 0
    told = headers.get("Content-Range", "")
    found = CONTENT_RANGE.match(told)
    if not found or (int(found[1]), int(found[2])) != (start, remote.size):
        raise OtherContent(f"asked for bytes {start}- of {remote.size}, it sends {shown(told)}")
    return start
