"""The error type shown to users: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
WHERE, FIX = "  where: ", "  what to do: "
# System errors caused by an invalid offset or length in a file's content.
OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)
# `user:password@` of an address: up to the last @ before its path. The password may contain
# unescaped / ? and #, as long as it does not look like a port.
_CREDENTIALS = re.compile(
    r"""(?<=://)(?:[^\s/?#]*@|[^\s/?#:@"'<>\\]*:(?!\d*[/?#])[^\s@"'<>\\]*@)"""
)
# Values of query parameters whose name marks them as secret.
_SECRETS = re.compile(
    r"""([?&][\w.-]*(?:pass|pwd|secret|token|signature|api_?key)[\w.-]*=)[^\s&#"'<>\\]+""",
    re.IGNORECASE,
)


def without_passwords(text: str) -> str:
    """Remove `user:password@` and secret query values from all addresses in a text."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("", text))


class AvomniError(Exception):
    """An error that a user can act on.

    Users, passwords and other secrets are removed from addresses in its texts.

    Args:
        what: What is wrong, with the values that show it.
        where: The file, clip_id, camera, frame or parameter concerned.
        fix: A command to run or a parameter to change.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        what = without_passwords(what)
        where, fix = where and without_passwords(where), fix and without_passwords(fix)
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        return "\n".join(self.parts())

    def parts(self) -> list[str]:
        """The lines of the message: what, where and fix, as far as they are known.

        `from_parts` reads them back; errors leave a notebook in this form.
        """
        shown = (self.what, self.where and WHERE + self.where, self.fix and FIX + self.fix)
        return [part for part in shown if part]

    @classmethod
    def from_parts(cls, parts: Sequence[str]) -> AvomniError:
        """The inverse of `parts`."""
        known = {}
        for part in parts[1:]:
            name, mark = ("where", WHERE) if part.startswith(WHERE) else ("fix", FIX)
            known[name] = part.removeprefix(mark)
        return AvomniError(parts[0], **known)

    def __reduce__(self):
        # Worker processes send errors, and keyword-only arguments do not pickle by default.
        return functools.partial(type(self), self.what, where=self.where, fix=self.fix), ()

    def _render_traceback_(self) -> list[str]:
        """Called by IPython: notebooks show the message without a traceback."""
        what, *more = self.parts()
        return [f"{type(self).__name__}: {what}", *more]


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error that caused `error`, such as a missing file or a failing disk.

    Causes and contexts are searched, even those hidden by `from None`. None if the content of a
    file is at fault, which is always so for FFmpeg's errors.
    """
    seen: BaseException | None = error
    while seen is not None:
        is_ours = not type(seen).__module__.startswith("av.")
        if isinstance(seen, OSError) and is_ours and seen.errno not in (None, *OF_CONTENT):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def pick(options: Mapping[str, T], name: str, kind: str, where: str) -> T:
    """Look up an option by the name that the parameter `where` gives.

    Raises:
        AvomniError: there is none of this `kind`; the message lists those that exist.
    """
    if name not in options:
        fix = f"choose one of {', '.join(options)}"
        raise AvomniError(f"unknown {kind} {name!r}", where=where, fix=fix)
    return options[name]
