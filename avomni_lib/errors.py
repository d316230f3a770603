"""The one error type that users meet: what happened, where, and what to do about it."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
WHERE, FIX = "  where: ", "  what to do: "
# What the system answers to a place or a length that a file's content has named.
OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)
# `user:password@` of an address: up to the last @ before its path. A password may also hold the / ?
# and # that it should not, as long as it does not look like a port.
_CREDENTIALS = re.compile(
    r"""(?<=://)(?:[^\s/?#]*@|[^\s/?#:@"'<>\\]*:(?!\d*[/?#])[^\s@"'<>\\]*@)"""
)
# The value of what is called a password in an address's query.
_SECRETS = re.compile(
    r"""([?&][\w.-]*(?:pass|pwd|secret|token|signature|api_?key)[\w.-]*=)[^\s&#"'<>\\]+""",
    re.IGNORECASE,
)


def without_passwords(text: str) -> str:
    """The text without the `user:password@` and the secret values of every address in it."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("", text))


class AvomniError(Exception):
    """A mistake or a fault that a person can act on.

    Addresses in its texts are shown without user, password and other secrets.

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
        """What, where and what to do, each as it is shown; those that are not known are left out.

        `from_parts` reads them back: it is how an error leaves a notebook.
        """
        shown = (self.what, self.where and WHERE + self.where, self.fix and FIX + self.fix)
        return [part for part in shown if part]

    @classmethod
    def from_parts(cls, parts: Sequence[str]) -> AvomniError:
        """The error whose `parts` these are."""
        known = {}
        for part in parts[1:]:
            name, mark = ("where", WHERE) if part.startswith(WHERE) else ("fix", FIX)
            known[name] = part.removeprefix(mark)
        return AvomniError(parts[0], **known)

    def __reduce__(self):
        # Exceptions with keyword arguments do not pickle by default; worker processes send these
        # back.
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the message, not our insides."""
        what, *more = self.parts()
        return [f"{type(self).__name__}: {what}", *more]


def system_error(error: BaseException) -> OSError | None:
    """What the system answered where `error` came of that: a file that is gone, a disk that fails.

    It is looked for among the errors that `error` was raised in place of, `from None` included.
    None where the content of a file is at fault; what FFmpeg says is always of the content.
    """
    seen: BaseException | None = error
    while seen is not None:
        is_ours = not type(seen).__module__.startswith("av.")
        if isinstance(seen, OSError) and is_ours and seen.errno not in (None, *OF_CONTENT):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def pick(options: Mapping[str, T], name: str, kind: str, where: str) -> T:
    """The option called `name`.

    Args:
        kind: What the options are, in words.
        where: The parameter that named it.

    Raises:
        AvomniError: there is none; it says which there are.
    """
    if name not in options:
        fix = f"choose one of {', '.join(options)}"
        raise AvomniError(f"unknown {kind} {name!r}", where=where, fix=fix)
    return options[name]


def _rebuild(kind: type[AvomniError], what: str, where: str | None, fix: str | None) -> AvomniError:
    return kind(what, where=where, fix=fix)
