"""Bytes out of Xet's storage, through names of huggingface_hub that are private to it.

All that are used stand in this module. Where a release moves one, its test fails by that name, and
files come by plain HTTP.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from avomni_lib.dataset.download.remote import RemoteFile

PRIVATE_NAMES = {
    "huggingface_hub.utils._runtime": ("is_xet_available",),
    "huggingface_hub.utils._xet": (
        "XetFileData",
        "XetTokenType",
        "get_xet_session",
        "refresh_xet_connection_info",
        "xet_connection_info_refresh_url",
        "xet_headers_without_auth",
    ),
}


def is_available() -> bool:
    """Whether hf_xet is installed and the user does not do without it (HF_HUB_DISABLE_XET)."""
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return is_xet_available()


class Storage:
    """Where Xet keeps the files of one repository at one commit; the hub is asked for it.

    Args:
        headers: For the hub, with the user's token; the storage gets a token of its own.
    """

    def __init__(self, repo_id: str, commit: str, endpoint: str, headers: dict[str, str]):
        self._xet: Any = importlib.import_module("huggingface_hub.utils._xet")
        self._headers = headers
        self._route = self._xet.xet_connection_info_refresh_url(
            token_type=self._xet.XetTokenType.READ,
            repo_id=repo_id,
            repo_type="dataset",
            revision=commit,
            endpoint=endpoint,
        )
        # Nothing but the route is read of the file.
        file = self._xet.XetFileData("", self._route)
        self._access = self._xet.refresh_xet_connection_info(file_data=file, headers=headers)
        self.endpoint: str = self._access.endpoint

    def blocks(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        """The file's bytes from `start` on."""
        from hf_xet import XetFileInfo

        group = self._xet.get_xet_session().new_download_stream_group(
            endpoint=self.endpoint,
            token=self._access.access_token,
            token_expiry_unix_secs=self._access.expiration_unix_epoch,
            token_refresh_url=self._route,
            token_refresh_headers=self._headers,
            custom_headers=self._xet.xet_headers_without_auth(self._headers),
        )
        stream = group.download_stream(XetFileInfo(remote.xet_hash, remote.size), start=start)
        try:
            yield from stream
        finally:
            stream.cancel()
