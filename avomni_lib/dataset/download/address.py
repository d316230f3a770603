"""A hub's address taken apart: which host it is, and whether a secret may be sent there."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from avomni_lib.errors import AvomniError

# Stricter than RFC 3986, so that no two readers can find two hosts in it.
_ENDPOINT = re.compile(
    r"(?P<scheme>https?)://(?:(?P<user>[!-~]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?P<port>:[0-9]{1,5})?(?P<path>(?:/[\w.~%+-]*)*)",
    re.IGNORECASE | re.ASCII,
)
_NOT_IN_USER = frozenset("/?#\\@")


@dataclass(frozen=True, slots=True)
class Address:
    """An address of http or https.

    Attributes:
        url: Without user, password and a slash at its end.
        host: A name, or an IP address without brackets.
        basic: The value of an Authorization header that user and password stand for; None without
            them.
    """

    url: str
    host: str
    basic: str | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine: 127.0.0.0/8, ::1 or `localhost`, and no name beside it."""
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host.lower() == "localhost"
        return ip.is_loopback and getattr(ip, "ipv4_mapped", None) is None

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent there."""
        return self.url.startswith("https://") or self.is_loopback


def parse(text: object, where: str) -> Address:
    """Take an address apart.

    Args:
        where: The parameter or variable that it comes from.

    Raises:
        AvomniError: it is no address of a hub. The address is not repeated: it may hold a password.
    """
    match = _ENDPOINT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or (match["user"] and _NOT_IN_USER & set(match["user"])):
        raise AvomniError(
            "this is no address of a hub",
            where=where,
            fix="write https://host or https://host:port; in a user or password before an `@`, "
            "write / ? # @ as %2F %3F %23 %40",
        )
    scheme, host = match["scheme"].lower(), match["host"]
    url = f"{scheme}://{host}{match['port'] or ''}{match['path'].rstrip('/')}"
    basic = None
    if match["user"] is not None:
        pair = unquote(match["user"]) if ":" in match["user"] else unquote(match["user"]) + ":"
        basic = "Basic " + base64.b64encode(pair.encode()).decode()
    return Address(url, host.strip("[]"), basic)
