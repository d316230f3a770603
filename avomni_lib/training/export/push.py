"""The adapter and its card to a repository of the hub.

What was learned from a gated data set or from own recordings is confidential, as its record says,
and leaves this machine only where the caller says by name that it may.
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
    private: bool = True,
) -> dict[str, Any]:
    """Put the run's adapter into `repo_id` as one commit; the repository is made if need be.

    Its card has 05's times, memory and energy too, which the one in the run's folder leaves out.

    Args:
        repo_id: `owner/name`, of a model.
        figures: 05's, for the card.
        share_confidential: Whether one from clips that are not ours may go.
        private: Of a repository that is made.

    Returns:
        `url`, `commit`, `files` and `private`.

    Raises:
        AvomniError: no whole adapter; a confidential one; the licence is not decided on; the hub
            refuses, or cannot be reached.
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
        api.create_repo(repo_id, private=private, exist_ok=True)
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
    except Exception as error:  # httpx's own, of a line that breaks, are no OSError
        if not type(error).__module__.startswith("http"):
            raise
        raise AvomniError(
            f"the hub cannot be reached: {error}", where=repo_id, fix="try again"
        ) from None
    return {
        "url": str(made.repo_url),
        "commit": made.oid,
        "files": [CARD, *sent],
        "private": private,
    }
