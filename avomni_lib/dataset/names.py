"""Checks of names, paths, ids and sizes that come from outside, called where a value enters.

Responses of a hub, tables of a data set and files of earlier runs name files. Plain names, relative
paths, hex ids, sizes and templates in them are checked here before use.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

from avomni_lib.errors import AvomniError

MAX_NAME_BYTES = 200
MAX_PATH_BYTES = 1000
MAX_SIZE = 2**63 - 1
# Most names match this and need no further checks.
ORDINARY = r"[0-9A-Za-z_][0-9A-Za-z_-]{0,199}"
_ORDINARY = re.compile(ORDINARY)
_DRIVE = re.compile(r"[A-Za-z]:")
# The field of a template; the width of a zero-padded number has one or two digits.
_FIELDS = {
    "chunk_id": re.compile(r"\{chunk_id(?::0([0-9]{1,2})d?)?\}"),
    "clip_id": re.compile(r"\{clip_id()\}"),
}
_CHUNK_DIGITS = 7  # more than the largest chunk number has
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


def shown(value: Any) -> str:
    """Format a value from outside for an error: quoted, escaped, at most 80 characters."""
    return _SHOWN.repr(value)


def printable(text: str) -> str:
    """A name from outside for use in a sentence: unchanged if printable, else as `shown`."""
    return text if text.isprintable() and len(text) <= MAX_NAME_BYTES else shown(text)


def name_fault(name: Any) -> str | None:
    """Why a value is not a plain name of at most 200 bytes, or None if it is one.

    A plain name can be a file name or a part of one, in any folder and on any file system.
    """
    if not isinstance(name, str):
        return "it is not text"
    if _ORDINARY.fullmatch(name):
        return None
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it holds characters that cannot be printed"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if "/" in name or "\\" in name:
        return "it holds a slash or a backslash"
    if name[0] in ". " or name[-1] in ". ":
        return "it starts or ends with a dot or a space"
    return "it starts with the name of a drive" if _DRIVE.match(name) else None


def path_fault(path: Any) -> str | None:
    """Why a value is not a relative path of plain names joined by `/`; None if it is one."""
    if not isinstance(path, str):
        return "it is not text"
    if path.startswith("/"):
        return "it is absolute"
    if len(path) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    for part in path.split("/"):
        if part == "..":
            return "it leaves its folder by `..`"
        if fault := name_fault(part):
            return fault if part == path else f"its part {shown(part)} is no plain name: {fault}"
    return None


def template_fault(template: Any, field: str) -> str | None:
    """Why a value is not a relative path with exactly this field; None if it is one.

    Args:
        field: `chunk_id`, which may be padded as in `{chunk_id:04d}`, or `clip_id`.
    """
    if not isinstance(template, str):
        return "it is not text"
    if len(template) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    filled, num_fields = _FIELDS[field].subn(
        lambda match: "0" * max(_CHUNK_DIGITS, int(match[1] or 0)), template
    )
    if "{" in filled or "}" in filled:
        return f"its only field may be {{{field}}}, a number's with a width as in :04d"
    if not num_fields:
        return f"it has no {{{field}}}"
    return path_fault(filled)


def hex_fault(value: Any, num_digits: int) -> str | None:
    """Why a value is not a hash of `num_digits` lower-case hex digits; None if it is one."""
    if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{num_digits}}}", value):
        return None
    return f"it is not {num_digits} hex digits"


def size_fault(value: Any) -> str | None:
    """Why a value is not a number of bytes; None if it is one."""
    if type(value) is int and 0 <= value <= MAX_SIZE:
        return None
    return "it is not a whole number of bytes"


def need(what: str, value: Any, fault: str | None, where: str, fix: str | None = None) -> None:
    """Raise an AvomniError for a value from outside if it has a fault."""
    if fault is not None:
        raise AvomniError(f"{what} {shown(value)} is refused: {fault}", where=where, fix=fix)
