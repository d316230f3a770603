"""Reading from Xet's storage, through private names of huggingface_hub.

All private names used are listed here. If a release moves one, a test fails with that name, and
files are fetched by plain HTTP.
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
    """Whether hf_xet is installed and not disabled (HF_HUB_DISABLE_XET)."""
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return is_xet_available()


class Storage:
    """Xet's storage for one repository at one commit; its address is requested from the hub.

    Args:
        headers: Headers for the hub, with the user's token; the storage uses another token.
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
        # Only the route of this object is used.
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
