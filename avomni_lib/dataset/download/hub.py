"""Access to the hub at a pinned revision: exact file sizes, and content by Range or Xet.

Uses the session, addresses, headers and errors of huggingface_hub; `transfer.py` does downloads.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants, errors, get_token
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from avomni_lib.dataset import names
from avomni_lib.dataset.download import responses, transfer, xet
from avomni_lib.dataset.download.backoff import Backoff, Retry
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.responses import Address, parse_address
from avomni_lib.dataset.download.transfer import OtherContent
from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.plan import Bar

log = logging.getLogger(__name__)
T = TypeVar("T")

# As many paths per request as NVIDIA's kit uses.
PATHS_A_REQUEST = 500
COMMIT = re.compile(r"[0-9a-f]{40}")
# Names of branches and tags that git and the hub accept, unescaped in an address.
REVISION = re.compile(r"(?!.*\.\.)[0-9A-Za-z_][\w./+@-]{0,199}")
TOKEN = re.compile(r"[!-~]+")
BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
# Read timeouts: of downloads (HF_HUB_DOWNLOAD_TIMEOUT, 10 s), and of the slower API.
SILENCE_S = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
API_SILENCE_S = 3 * SILENCE_S
# What the client raises for a response that is not from a hub.
NOT_A_HUBS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Hub:
    """One data set repository at one commit. Creating it makes no request.

    Args:
        repo_id: `owner/name`.
        revision: 40 hex digits, a tag or a branch; None takes main's commit on first use.
        endpoint: Another hub's address; None is HF_ENDPOINT, or huggingface.co. A user and password
            in it are sent instead of a token, and never shown.
        token: None takes the saved one (`hf auth login`, HF_TOKEN).
        backoff: Waits for a busy hub or a bad connection.
        allow_plain_http: Whether the token may be sent by http to another machine.

    Raises:
        AvomniError: repo_id, revision, endpoint or token are invalid, or the token would be sent
            unencrypted.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        backoff: Backoff | None = None,
        allow_plain_http: bool = False,
    ):
        try:
            huggingface_hub.utils.validate_repo_id(repo_id)
        except errors.HFValidationError as error:
            raise AvomniError(
                f"no name of a data set: {error}", where="dataset.repo_id", fix="write owner/name"
            ) from None
        where = "HF_ENDPOINT" if endpoint is None else "dataset.endpoint"
        hub, secret = _opened(endpoint, where, token, allow_plain_http)
        if hub.is_loopback:
            _keep_from_proxies(hub.host)
        self.repo_id, self.endpoint = repo_id, hub.url
        self.revision = _checked_revision(revision)
        self.backoff, self._allows_plain_http = backoff or Backoff(), allow_plain_http
        self._headers = build_hf_headers(token=False, library_name="avomni", headers=secret)
        self._api = huggingface_hub.HfApi(endpoint=hub.url, token=False, headers=secret)
        # Commit -> path -> the hub's entry, None if there is none. A commit cannot change.
        self._listed: dict[str, dict[str, RemoteFile | None]] = {}
        self._is_xet_lost = False

    def __repr__(self) -> str:
        return f"Hub({self.repo_id!r}, revision={self.revision!r}, endpoint={self.endpoint!r})"

    @property
    def page(self) -> str:
        """The data set's page, where its terms are shown and accepted."""
        return f"{self.endpoint}/datasets/{self.repo_id}"

    def at(self, revision: str) -> Hub:
        """The same repository at another revision."""
        hub = copy.copy(self)
        hub.__dict__.pop("commit", None)
        hub.revision = _checked_revision(revision)
        return hub

    @cached_property
    def commit(self) -> str:
        """The commit, 40 hex digits; requested once.

        Raises:
            AvomniError: the revision or the repository does not exist, or the hub is unreachable.
        """
        repo_id, revision = self.repo_id, self.revision
        if revision and COMMIT.fullmatch(revision):
            return revision
        if revision:
            info = self._ask(lambda: self._api.dataset_info(repo_id, revision=revision), "revision")
            commits = [info.sha]
        else:
            refs = self._ask(lambda: self._api.list_repo_refs(repo_id, repo_type="dataset"), "refs")
            commits = [branch.target_commit for branch in refs.branches if branch.name == "main"]
        if not commits:
            raise AvomniError("the data set has no branch main", where=self.page)
        where = f"the answer of {self.page}"
        names.need("the commit", commits[0], names.hex_fault(commits[0], 40), where)
        return str(commits[0])

    def check_access(self) -> None:
        """Check that files may be read, before anything long is started.

        Raises:
            AvomniError: no token, terms not accepted, no such repository.
        """
        self._ask(lambda: self._api.auth_check(self.repo_id, repo_type="dataset"), "access")

    def sizes(self, paths: Sequence[str]) -> dict[str, RemoteFile]:
        """The hub's entries for these paths at the pinned commit; missing paths are left out."""
        known = self._listed.setdefault(self.commit, {})
        unknown = [path for path in dict.fromkeys(paths) if path not in known]
        for start in range(0, len(unknown), PATHS_A_REQUEST):
            batch = unknown[start : start + PATHS_A_REQUEST]
            infos = self._ask(
                lambda batch=batch: self._api.get_paths_info(
                    self.repo_id, batch, revision=self.commit, repo_type="dataset"
                ),
                f"sizes of {len(batch)} files",
            )
            listed = [self._listed_file(info) for info in infos if isinstance(info, RepoFile)]
            known.update(dict.fromkeys(batch))
            known.update({file.path: file for file in listed if file.path in known})
        return {path: known[path] for path in paths if known[path]}

    def _listed_file(self, info: RepoFile) -> RemoteFile:
        """Check an entry of the hub."""
        try:
            sha256 = info.lfs.sha256 if info.lfs else None
            return RemoteFile(info.path, info.size, sha256, info.blob_id, info.xet_hash)
        except AvomniError as error:
            fix = "check dataset.endpoint and dataset.repo_id; report it to the hub's owner"
            raise AvomniError(error.what, where=f"{error.where}: {self.page}", fix=fix) from None

    def fetch(self, remote: RemoteFile, folder: Path, bar: Bar | None = None) -> Path:
        """Fetch one file to `folder / remote.path`; waits if another process is fetching it.

        Raises:
            AvomniError: as `transfer.complete`.
        """
        path, was_taken = Path(folder) / remote.path, False
        while True:
            with transfer.claim(folder, remote) as partial:
                if partial and was_taken and path.exists() and remote.differs(path) is None:
                    return path
                if partial:
                    return transfer.complete(partial, self, folder, bar)
            was_taken = True
            self.backoff.pause(1)

    @contextlib.contextmanager
    def read(
        self, remote: RemoteFile, start: int, stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield (offset, blocks) of a file from `start` on, or from 0 if the hub ignores ranges.

        Raises:
            Retry: the connection fails.
            OtherContent: the content is not that of the listed file.
            AvomniError: another try would not help.
        """
        if remote.xet_hash and xet.is_available() and not self._is_xet_lost:
            yield start, self._xet_blocks(remote, start)
            return
        with contextlib.ExitStack() as stack:
            response = self.backoff.call(
                lambda: stack.enter_context(self._stream(remote, start)), stop
            )
            hub_headers = _first(response).headers
            status, headers = response.status_code, response.headers
            with self._explained(remote.path):
                offset = responses.first_byte(status, headers, hub_headers, remote, start)
                yield offset, response.iter_bytes()

    def report_wrong_content(self, remote: RemoteFile) -> None:
        """Report that the file's content was wrong; Xet is not used from then on."""
        self._is_xet_lost = self._is_xet_lost or bool(remote.xet_hash)

    @contextlib.contextmanager
    def _stream(self, remote: RemoteFile, start: int) -> Iterator[Any]:
        """An open response. httpx drops the token if a redirect leaves the host."""
        what, at = remote.path, {"revision": self.commit, "endpoint": self.endpoint}
        url = huggingface_hub.hf_hub_url(self.repo_id, what, repo_type="dataset", **at)
        # A compressed body could not be resumed.
        headers = self._headers | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            self._explained(what),
            _session().stream("GET", url, headers=headers, timeout=SILENCE_S) as response,
        ):
            status = response.status_code
            if status == 416:
                raise OtherContent(f"no byte {start:,}, of {remote.size:,} that are listed")
            if status not in (200, 206):
                refusal = self._refusal(response, what)
                is_elsewhere = _first(response).url.netloc != response.url.netloc
                if is_elsewhere and isinstance(refusal, AvomniError):
                    # The redirect's address has expired: the next try gets a new one.
                    raise Retry(refusal)
                raise refusal
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind == "text/html":
                # A sign-in page; the part of the file that was fetched is kept.
                raise responses.no_hub(what, self.endpoint, "a web page")
            self.backoff.hold(responses.rate_limit_s(response.headers))
            yield response

    def _xet_blocks(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        """Blocks of a file from Xet's storage. If it fails, Range is used from then on."""
        try:
            storage = xet.Storage(self.repo_id, self.commit, self.endpoint, self._headers)
            where = parse_address(storage.endpoint, "Xet's storage")
            if not (where.is_private or self._allows_plain_http):
                raise responses.in_the_clear(where.url, "Xet's storage")
            yield from storage.blocks(remote, start)
        except Exception as error:
            if not self._is_xet_lost:
                reason = without_passwords(str(error))
                log.warning("Xet fails (%s): files come by plain HTTP from here on", reason)
            self._is_xet_lost = True
            raise Retry(self._unreachable("Xet", error)) from None

    def _ask(self, call: Callable[[], T], what: str) -> T:
        """Make one API request, with retries."""

        def ask() -> T:
            _session()
            try:
                with self._explained(what):
                    return call()
            except NOT_A_HUBS as error:
                why = f"something else than an answer to that ({type(error).__name__})"
                raise responses.no_hub(what, self.endpoint, why) from None
            except Retry as retry:
                # If no connection can be established, retrying at once is of no use.
                raise retry.explained if retry.is_unreached else retry from None

        return self.backoff.call(ask)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the client's exceptions into Retry or AvomniError."""
        try:
            yield
        except errors.HfHubHTTPError as error:
            raise self._refusal(error.response, what) from None
        except errors.OfflineModeIsEnabled:
            raise AvomniError(
                f"cannot ask the hub for {what}: HF_HUB_OFFLINE is set",
                where=self.page,
                fix="unset HF_HUB_OFFLINE, or set dataset.source: folder if the files are here",
            ) from None
        except Exception as error:
            # httpx's errors by name, as huggingface_hub 2.x uses another library.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if "TransportError" in kinds or "client has been closed" in str(error):
                unreached = "ConnectError" in kinds or "ConnectTimeout" in kinds
                raise Retry(self._unreachable(what, error), is_unreached=unreached) from None
            if "HTTPError" in kinds or "InvalidURL" in kinds:
                raise self._unreachable(what, error) from None
            raise

    def _refusal(self, response: Any, what: str) -> Retry | AvomniError:
        """Retry if another try may help, else the error to raise."""
        status, headers = response.status_code, response.headers
        wait_s, code = responses.retry_after_s(status, headers), headers.get("X-Error-Code")
        error = responses.explain(status, code, what, self.page, self.revision, wait_s)
        is_busy = status in BUSY_STATUSES
        return Retry(error, wait_s, status == 429 or wait_s is not None) if is_busy else error

    def _unreachable(self, what: str, cause: BaseException) -> AvomniError:
        """The error if there is no connection to the hub, or it keeps failing."""
        return AvomniError(
            f"no connection to the hub while asking for {what}: {cause or type(cause).__name__}",
            where=self.endpoint,
            fix="check the network, a proxy (HTTPS_PROXY) and dataset.endpoint, then run the same "
            "command again: it goes on from here",
        )


def _first(response: Any) -> Any:
    """The hub's own response, before redirects."""
    return response.history[0] if response.history else response


def _session() -> Any:
    """The client's session, with a read timeout, which it lacks by default."""
    session = huggingface_hub.get_session()
    if session.timeout.read is None:
        session.timeout = API_SILENCE_S
    return session


def need_private_endpoint(allow_plain_http: bool = False) -> None:
    """Check the default endpoint before another library sends the saved token there.

    Raises:
        AvomniError: the token would be sent unencrypted to another machine.
    """
    _opened(None, "HF_ENDPOINT", None, allow_plain_http)


def _opened(
    endpoint: str | None, where: str, token: str | None, allow_plain_http: bool
) -> tuple[Address, dict[str, str]]:
    """The hub's address, and the authorization header for it, if any."""
    hub = parse_address(constants.ENDPOINT if endpoint is None else endpoint, where)
    # A hub on this machine does not need the user's token.
    if token is None and not hub.is_loopback and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = get_token()
    if not token and not hub.basic:
        return hub, {}
    if not hub.basic and not TOKEN.fullmatch(token or ""):
        raise AvomniError(
            "the token holds characters that no token has",
            where="HF_TOKEN, or the file that `hf auth login` has written",
            fix="copy it again from https://huggingface.co/settings/tokens",
        )
    if not (hub.is_private or allow_plain_http):
        raise responses.in_the_clear(hub.url, where)
    return hub, {"authorization": hub.basic or f"Bearer {token}"}


def _checked_revision(revision: str | None) -> str | None:
    if revision is not None:
        is_name = isinstance(revision, str) and REVISION.fullmatch(revision)
        fault = None if is_name else "no name of a commit, tag or branch"
        names.need("the revision", revision, fault, "dataset.revision")
    return revision


def _keep_from_proxies(host: str) -> None:
    """Exclude a hub on this machine from the environment's proxies."""
    for name in ("NO_PROXY", "no_proxy"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        wanted = dict.fromkeys((*known, host, "127.0.0.1", "localhost"))
        if len(wanted) > len(dict.fromkeys(known)):
            os.environ[name] = ",".join(wanted)
            huggingface_hub.close_session()
