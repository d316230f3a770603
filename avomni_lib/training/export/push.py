"""Uploads the adapter and its card to a repository of the hub.

An adapter that was trained on a gated data set or on own recordings is confidential according to
its record, and is uploaded only if the caller explicitly allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from avomni_lib.dataset.select.selection import need_license
from avomni_lib.errors import AvomniError
from avomni_lib.params import CONFIDENTIAL, NOT_ANONYMISED, Params
from avomni_lib.training.export.card import card
from avomni_lib.training.model import adapter

CARD = "README.md"


def push(
    p: Params,
    repo_id: str,
    figures: Mapping[str, Any] | None = None,
    *,
    share_confidential: bool = False,
) -> dict[str, Any]:
    """Upload the run's adapter to `repo_id` as one commit; creates a private repository if needed.

    Its card also has 05's times, memory and energy, unlike the one in the run's folder.

    Args:
        repo_id: `owner/name` of a model repository.
        figures: Figures of 05, for the card.
        share_confidential: Allow uploading an adapter that was trained on confidential clips.

    Returns:
        `url`, `commit`, `files` and `private`.

    Raises:
        AvomniError: there is no complete adapter; it is confidential; the licence is not accepted;
            the hub refuses or cannot be reached.
    """
    folder = adapter.adapter_dir(p)
    record = adapter.read_record(folder)
    adapter.check_whole(folder)
    if {record["notice"], p.notice} - {None, NOT_ANONYMISED} and not share_confidential:
        raise AvomniError(
            f"this adapter {CONFIDENTIAL}: it was trained on clips of "
            f"{record.get('repo_id') or p.dataset.repo_id}, whose terms bind what is made of them",
            where=str(folder),
            fix="keep it; or read the data set's terms, decide, and add --share-confidential",
        )
    need_license(p)
    text = card(record, figures, measured=True)
    sent = {path.name: path for path in sorted(folder.iterdir()) if path.name != CARD}
    operations = [CommitOperationAdd(CARD, text.encode())]
    operations += [CommitOperationAdd(name, str(path)) for name, path in sent.items()]
    api = HfApi(endpoint=p.dataset.endpoint)
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        made = api.create_commit(
            repo_id, operations, commit_message=f"Adapter of run {p.run.name}, by AV-Omni"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AvomniError(
            f"the adapter cannot be pushed: {reason}",
            where=repo_id,
            fix="check the name (owner/name), `hf auth login` with a token that may write, and the "
            "network; nothing was changed here",
        ) from None
    except Exception as error:  # httpx's connection errors are not OSError
        if not type(error).__module__.startswith("http"):
            raise
        raise AvomniError(
            f"the hub cannot be reached: {error}", where=repo_id, fix="try again"
        ) from None
    return {
        "url": str(made.repo_url),
        "commit": made.oid,
        "files": [CARD, *sent],
        "private": True,
    }
