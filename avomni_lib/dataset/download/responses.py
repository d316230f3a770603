"""Addresses of hubs, and the meaning of their responses: waits, ranges and refusals.

Each refusal becomes an error that says what to do about it.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote

from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import OtherContent
from avomni_lib.dataset.names import shown
from avomni_lib.errors import AvomniError
from avomni_lib.plan import minutes

# Stricter than RFC 3986, so that all parsers agree on the host.
_ENDPOINT = re.compile(
    r'(https?)://(?:([!"$-.0->A-\[\]-~]*)@)?(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]{1,5})?'
    r"((?:/[\w.~%+-]*)*)",
    re.IGNORECASE | re.ASCII,
)
# `RateLimit: "resolvers";r=0;t=55`: remaining requests, seconds until the count is reset.
RATE_LIMIT = re.compile(r"\br\s*=\s*([0-9]{1,18})\s*;\s*t\s*=\s*([0-9]{1,18})")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


class Address(NamedTuple):
    """An http or https address."""

    url: str  # without a trailing slash
    host: str  # a name, or an IP address without brackets
    basic: str | None = None  # the Authorization header of its user and password; never shown

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine: 127.0.0.0/8, ::1 or exactly `localhost`."""
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host.lower() == "localhost"
        return ip.is_loopback and getattr(ip, "ipv4_mapped", None) is None

    @property
    def is_private(self) -> bool:
        """Whether requests are encrypted or stay on this machine."""
        return self.url.startswith("https://") or self.is_loopback


def parse_address(text: object, where: str) -> Address:
    """Parse an address from the parameter or variable `where`.

    Raises:
        AvomniError: it is no address of a hub. The message omits it, as it may contain a password.
    """
    match = _ENDPOINT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        fix = (
            "write https://host or https://host:port; in a user or password before an `@`, write "
            "/ ? # @ as %2F %3F %23 %40"
        )
        raise AvomniError("this is no address of a hub", where=where, fix=fix)
    scheme, user, host, port, path = match.groups()
    url = f"{scheme.lower()}://{host}{port or ''}{path.rstrip('/')}"
    basic = None
    if user is not None:
        pair = unquote(user) if ":" in user else unquote(user) + ":"
        basic = "Basic " + base64.b64encode(pair.encode()).decode()
    return Address(url, host.strip("[]"), basic)


def retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    """The wait requested by RateLimit or Retry-After (RFC 9110, 10.2.3), or None."""
    if status == 429 and (wait_s := rate_limit_s(headers)):
        return wait_s
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, ArithmeticError, LookupError):
        return None


def rate_limit_s(headers: Mapping[str, str]) -> float:
    """Seconds until the hub accepts requests again if the limit is used up, else 0."""
    match = RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(match[2]) if match and match[1] == "0" else 0.0


def first_byte(
    status: int,
    headers: Mapping[str, str],
    hub_headers: Mapping[str, str],
    remote: RemoteFile,
    start: int,
) -> int:
    """Offset in the file at which the body starts: `start`, or 0 if the range was ignored.

    If-Range cannot be used, as the hub's ETag differs from that of the host it redirects to. The
    address contains the commit instead, and the complete file is hashed at the end.

    Args:
        hub_headers: Headers of the hub's response, before redirects.

    Raises:
        OtherContent: the response is not the listed file.
    """
    etag = hub_headers.get("X-Linked-ETag") or hub_headers.get("ETag") or ""
    etag = etag.removeprefix("W/").strip('"')
    # Ignore other kinds of ETags, such as those of mirrors.
    if len(etag) == len(remote.content_id or "") and etag != remote.content_id:
        raise OtherContent(f"its hash at the source is now {shown(etag)}")
    if status != 206:
        return 0
    sent = headers.get("Content-Range", "")
    match = CONTENT_RANGE.match(sent)
    if not match or (int(match[1]), int(match[2])) != (start, remote.size):
        raise OtherContent(f"asked for bytes {start}- of {remote.size}, it sends {shown(sent)}")
    return start


def explain(
    status: int,
    code: str | None,
    what: str,
    page: str,
    revision: str | None,
    retry_after_s: float | None = None,
) -> AvomniError:
    """The error for a refused request.

    Args:
        code: The header X-Error-Code.
        what: The requested file or information.
        page: The data set's address on the hub.
        revision: The requested revision.
        retry_after_s: The wait requested by the hub.
    """
    accept, where = f"open {page}, read and accept its terms there", page
    repo_id = page.partition("/datasets/")[2]
    wait = minutes(retry_after_s) if retry_after_s else None
    match code, status:
        case "GatedRepo", 401:
            reason = f"{repo_id} is gated and there is no token"
            fix = f"{accept}, then `hf auth login` (or set HF_TOKEN) and run again"
        case "GatedRepo", _:
            reason = f"{repo_id} is gated and this token's account may not read it ({status})"
            fix = f"{accept} with the account of the token, or `hf auth login` as one that has"
        case "RevisionNotFound", _:
            reason, where = f"{repo_id} has no revision {revision!r}", "dataset.revision"
            fix = f"leave it out to take main, or take a commit of {page}/commits/main"
        case "EntryNotFound", _:
            reason, where = f"{what} is gone from the source", f"{page} at revision {revision}"
            fix = "name other chunks in download.chunks, or another dataset.revision"
        case "RepoNotFound", _:
            reason = f"no data set {repo_id} on the hub, or it is private ({status})"
            fix = "check dataset.repo_id; for a private one `hf auth login`"
        case _, 401:
            reason = "the hub asks for a valid token, or there is no such data set (401)"
            fix = f"check dataset.repo_id, {accept}, then `hf auth login` "
            fix += "(HF_TOKEN, if set, comes first)"
        case _, 429:
            reason = f"the hub takes no more requests (429, when asked for {what})"
            reason += f": it asks to wait {wait}" if wait else ""
            fix = f"run the same command again {f'in {wait}' if wait else 'later'}: it goes on "
            fix += "from here; with a token (`hf auth login`) the hub allows more"
        case _:
            reason = f"the hub answered {status} when asked for {what}"
            fix = "wait some minutes and run the same command again: it goes on from here"
    return AvomniError(reason, where=where, fix=fix)


def no_hub(what: str, endpoint: str, why: str) -> AvomniError:
    """The error if the server that responds is not a hub."""
    return AvomniError(
        f"what answers is no hub: asked for {what}, it sends {why}",
        where=endpoint,
        fix="check dataset.endpoint and HF_ENDPOINT, and open a page in a browser: the network may "
        "want you to sign in first; then run the same command again: it goes on from here",
    )


def in_the_clear(endpoint: str, where: str) -> AvomniError:
    """The error if a token would be sent to an unencrypted address."""
    return AvomniError(
        f"the token would go unencrypted to {endpoint}",
        where=where,
        fix="use an https:// address; where you trust every machine on the way, set "
        "dataset.allow_plain_http: true; a hub that needs no token can be asked without one: "
        "HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
    )
