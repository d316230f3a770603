"""The one error type that users meet: what happened, where, and what to do about it."""

from __future__ import annotations


class AvomniError(Exception):
    """A mistake or a fault that a person can act on.

    Args:
        what: What is wrong, with the values that show it.
        where: The file, clip_id, camera, frame or parameter concerned.
        fix: A command to run or a parameter to change.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  what to do: {self.fix}")
        return "\n".join(parts)

    def __reduce__(self):
        # Exceptions with keyword arguments do not pickle by default; worker processes send these
        # back.
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the message, not our insides."""
        return [f"{type(self).__name__}: {self}"]


def _rebuild(kind: type[AvomniError], what: str, where: str | None, fix: str | None) -> AvomniError:
    return kind(what, where=where, fix=fix)
