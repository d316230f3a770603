"""What the hub's refusals mean, and what a person can do about each."""

from __future__ import annotations

from avomni_lib.errors import AvomniError


def explain(
    status: int, code: str | None, what: str, page: str, revision: str | None
) -> AvomniError:
    """One message for one refusal.

    Args:
        status: HTTP's.
        code: The header X-Error-Code; None where there is none.
        what: The file, or the question that was asked.
        page: The data set's address on the hub.
        revision: As it was asked for.
    """
    accept = f"open {page}, read and accept its terms there"
    repo_id = page.partition("/datasets/")[2]
    if code == "GatedRepo" and status == 401:
        return AvomniError(
            f"{repo_id} is gated and there is no token",
            where=page,
            fix=f"{accept}, then `hf auth login` (or set HF_TOKEN) and run again",
        )
    if code == "GatedRepo":
        return AvomniError(
            f"{repo_id} is gated and this token's account may not read it ({status})",
            where=page,
            fix=f"{accept} with the account of the token, or `hf auth login` as one that has",
        )
    if code == "RevisionNotFound":
        return AvomniError(
            f"{repo_id} has no revision {revision!r}",
            where="dataset.revision",
            fix=f"leave it out to take main, or take a commit of {page}/commits/main",
        )
    if code == "EntryNotFound":
        return AvomniError(
            f"{what} is gone from the source",
            where=f"{page} at revision {revision}",
            fix="name other chunks in download.chunks, or another dataset.revision",
        )
    if code == "RepoNotFound":
        return AvomniError(
            f"no data set {repo_id} on the hub, or it is private ({status})",
            where=page,
            fix="check dataset.repo_id; for a private one `hf auth login`",
        )
    if status == 401:
        return AvomniError(
            "the hub asks for a valid token, or there is no such data set (401)",
            where=page,
            fix=f"check dataset.repo_id, {accept}, then `hf auth login` "
            "(HF_TOKEN, if set, comes first)",
        )
    return AvomniError(
        f"the hub answered {status} when asked for {what}",
        where=page,
        fix="wait some minutes and run the same command again: what is whole is kept",
    )
