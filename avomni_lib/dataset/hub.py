"""The only room that talks to huggingface_hub: pinned revision, exact sizes, checked content.

huggingface_hub checks the size of what it fetched, not its hash, and never looks again at a file of
the pinned commit (measured on 1.33.0): here the content is compared with what the hub lists, the
sha256 of large files and git's blob id of small ones.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import errors

from avomni_lib import files
from avomni_lib.dataset import refusals
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar

log = logging.getLogger(__name__)
T = TypeVar("T")

WEBSITE = "https://huggingface.co"
# NVIDIA's kit asks for as many paths in one request.
PATHS_A_REQUEST = 500
NUM_TRIES = 4
COMMIT = re.compile(r"[0-9a-f]{40}")
BUSY_STATUSES = (429, 500, 502, 503, 504)


class Hub:
    """One data set repository at one commit. Making it asks nothing of the network.

    Args:
        repo_id: `owner/name`.
        revision: 40 hex, a tag or a branch; None takes main's commit at the first need.
        endpoint: Another hub's address; None is huggingface.co.
        token: None takes the saved one (`hf auth login`, HF_TOKEN).
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None = None,
        endpoint: str | None = None,
        token: str | None = None,
    ):
        self.repo_id, self.revision, self.endpoint = repo_id, revision, endpoint
        # No hub on this machine needs the user's own token.
        is_loopback = urlsplit(endpoint or "").hostname in ("127.0.0.1", "localhost", "::1")
        self._token = False if is_loopback and token is None else token
        if is_loopback:
            _keep_from_proxies()
        self._api = huggingface_hub.HfApi(endpoint=endpoint, token=self._token)

    def __repr__(self) -> str:
        return f"Hub({self.repo_id!r}, revision={self.revision!r}, endpoint={self.endpoint!r})"

    @property
    def page(self) -> str:
        """The data set's own page, where its terms are read and accepted."""
        return f"{self.endpoint or WEBSITE}/datasets/{self.repo_id}"

    def at(self, revision: str) -> Hub:
        """The same repository at another revision."""
        return Hub(self.repo_id, revision, self.endpoint, self._token or None)

    @cached_property
    def commit(self) -> str:
        """40 hex; asked for once.

        Raises:
            AvomniError: the revision or the repository does not exist, or the hub is out of reach.
        """
        if self.revision and COMMIT.fullmatch(self.revision):
            return self.revision
        if self.revision:
            info = self._ask(
                lambda: self._api.dataset_info(self.repo_id, revision=self.revision), "revision"
            )
            return info.sha
        refs = self._ask(
            lambda: self._api.list_repo_refs(self.repo_id, repo_type="dataset"), "refs"
        )
        for branch in refs.branches:
            if branch.name == "main":
                return branch.target_commit
        raise AvomniError("the data set has no branch main", where=self.page)

    def check_access(self) -> None:
        """Whether files may be read, before anything long is begun.

        Raises:
            AvomniError: no token, terms not accepted, no such repository.
        """
        self._ask(lambda: self._api.auth_check(self.repo_id, repo_type="dataset"), "access")

    def sizes(self, paths: Sequence[str]) -> dict[str, RemoteFile]:
        """What the hub lists for these paths at the pinned commit, without those that it lacks."""
        listed: dict[str, RemoteFile] = {}
        for start in range(0, len(paths), PATHS_A_REQUEST):
            batch = list(paths[start : start + PATHS_A_REQUEST])
            infos = self._ask(
                lambda batch=batch: self._api.get_paths_info(
                    self.repo_id, batch, revision=self.commit, repo_type="dataset"
                ),
                f"sizes of {len(batch)} files",
            )
            for info in infos:
                if isinstance(info, huggingface_hub.hf_api.RepoFile):
                    sha256 = info.lfs.sha256 if info.lfs else None
                    listed[info.path] = RemoteFile(info.path, info.size, sha256, info.blob_id)
        return listed

    def fetch(self, remote: RemoteFile, folder: Path, bar: Bar | None = None) -> Path:
        """Fetch one file to `folder / remote.path` and compare it with what the hub lists.

        A file whose content is wrong is removed and fetched once more.

        Args:
            remote: From `sizes`.
            folder: Keeps the repository's own layout.
            bar: Counts bytes as they arrive.

        Raises:
            AvomniError: it is wrong twice, is gone from the source, may not be read, or there is no
                room for it.
        """
        path = folder / remote.path
        for attempt in (1, 2):
            path.unlink(missing_ok=True)
            feed = _feed(bar or Bar())
            try:
                with self._explained(remote.path, path):
                    huggingface_hub.hf_hub_download(
                        self.repo_id,
                        remote.path,
                        repo_type="dataset",
                        revision=self.commit,
                        endpoint=self.endpoint,
                        token=self._token,
                        local_dir=folder,
                        # A second try must not take the client's own cached copy.
                        force_download=attempt > 1,
                        tqdm_class=feed,
                    )
                wrong = remote.differs(path)
            except _Incomplete as error:
                wrong = str(error)
            if wrong is None:
                feed.finish(remote.size)
                return path
            log.warning("%s arrived damaged (%s), try %d of 2", remote.path, wrong, attempt)
            path.unlink(missing_ok=True)
            feed.finish(0)
        raise AvomniError(
            f"{remote.path} arrived damaged twice: {wrong}",
            where=f"{self.page} at {self.commit[:12]}",
            fix="check the line and the disk, then run the same command again: "
            "what is whole is kept",
        )

    def _ask(self, call: Callable[[], T], what: str) -> T:
        """One request of the API; a busy hub is asked again (the client itself does not)."""
        for attempt in range(NUM_TRIES):
            try:
                with self._explained(what):
                    return call()
            except _Busy as busy:
                if attempt + 1 == NUM_TRIES:
                    raise busy.error from None
                time.sleep(2.0**attempt if busy.wait_s is None else busy.wait_s)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _explained(self, what: str, path: Path | None = None) -> Iterator[None]:
        """Turn what the client raises into one message that says what to do."""
        try:
            yield
        except errors.HfHubHTTPError as error:
            explained = self._explain(error, what)
            if error.response.status_code in BUSY_STATUSES and path is None:
                raise _Busy(explained, error.response.headers.get("Retry-After")) from None
            raise explained from None
        except errors.OfflineModeIsEnabled:
            raise AvomniError(
                f"cannot ask the hub for {what}: HF_HUB_OFFLINE is set",
                where=self.page,
                fix="unset HF_HUB_OFFLINE, or set dataset.source: folder if the files are here",
            ) from None
        except errors.LocalEntryNotFoundError as error:
            # The client's word for "could not ask"; the reason is its cause.
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                raise self._explain(error.__cause__, what) from None
            raise self._unreachable(what, error.__cause__ or error) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and path is not None:
                raise files.no_room(path, None) from None
            if "Consistency check failed" in str(error):
                raise _Incomplete("fewer or more bytes than listed") from None
            raise
        except Exception as error:
            # httpx's errors, which share no base with OSError, by name: 2.x has another library.
            if type(error).__module__.split(".")[0] in ("httpx", "httpcore", "httpx2"):
                raise self._unreachable(what, error) from None
            raise

    def _explain(self, error: errors.HfHubHTTPError, what: str) -> AvomniError:
        response = error.response
        code = response.headers.get("X-Error-Code")
        return refusals.explain(response.status_code, code, what, self.page, self.revision)

    def _unreachable(self, what: str, cause: BaseException) -> AvomniError:
        return AvomniError(
            f"no connection to the hub while asking for {what}: {cause}",
            where=self.endpoint or WEBSITE,
            fix="check the network, a proxy (HTTPS_PROXY) and dataset.endpoint, then run the same "
            "command again: what is whole is kept",
        )


class _Busy(Exception):
    """The hub asks for patience."""

    def __init__(self, error: AvomniError, retry_after: str | None):
        self.error = error
        self.wait_s = float(retry_after) if (retry_after or "").isdigit() else None


class _Incomplete(Exception):
    """The body had another length than announced."""


def _feed(bar: Bar) -> Any:
    """What huggingface_hub takes for its tqdm: hands the bytes on to our bar and prints nothing.

    `update_transfer` keeps Xet from opening a second one for the same bytes.
    """

    class Feed:
        count = 0

        def __init__(self, *_: Any, **__: Any):
            pass

        def update(self, amount: float = 1) -> None:
            Feed.count += amount
            bar.update(amount)

        @staticmethod
        def finish(num_bytes: int) -> None:
            """Make the count what really came: a copy from a cache tells less, a retry more."""
            if Feed.count != num_bytes:
                bar.update(num_bytes - Feed.count)
                Feed.count = num_bytes

        def update_transfer(self, amount: float = 1) -> None:
            pass

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

        set_postfix_str = refresh = close = set_transfer_postfix_str

        def __enter__(self) -> Feed:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Feed


def _keep_from_proxies() -> None:
    """A proxy of the environment must not be asked for this machine's own hub."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if "127.0.0.1" not in known:
            os.environ[name] = ",".join(part for part in (known, "127.0.0.1,localhost") if part)
            huggingface_hub.close_session()
