"""What the local hub answers to huggingface_hub: one method a route, with huggingface.co's headers.

Read from the client that asks (huggingface_hub 1.33.0, `hf_api.py` and `file_download.py`): refs,
revision, tree in pages, paths-info, auth-check, whoami, and `resolve` with Range, X-Repo-Commit,
X-Linked-ETag (sha256 of large files; git's blob id is the ETag of small ones) and X-Linked-Size.
With a second host `resolve` sends requests for large files on to it by a signed address; that host
wants no token and has ETags of its own.
"""

from __future__ import annotations

import hashlib
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from avomni_world.hub.wire import Blob, Wire, linked, pointer

BRANCH = "main"
PAGE_SIZE = 1000
STORAGE = "/storage/"


class Handler(Wire):
    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        api, site = f"/api/datasets/{self.hub.repo_id}", f"/datasets/{self.hub.repo_id}/resolve/"
        if self.server is self.hub.storage:
            commit, _, path = url.path.removeprefix(STORAGE).partition("/")
            self._file(self.hub.commits[commit][unquote(path)], commit)
        elif url.path == "/api/whoami-v2":
            self._whoami()
        elif url.path == api or url.path.startswith(api + "/"):
            self._api(*(unquote(part) for part in url.path[len(api) + 1 :].split("/", 2)))
        elif url.path.startswith(site):
            revision, _, path = url.path[len(site) :].partition("/")
            self._resolve(unquote(revision), unquote(path))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", "api:unknown")

    def _api(self, route: str, revision: str = BRANCH, path: str = "") -> None:
        name = f"api:{route or 'info'}"
        commit = self.hub.commit if revision == BRANCH else revision
        if self._is_refused(name):
            pass
        elif commit not in self.hub.commits:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", name)
        elif route in ("", "revision"):
            siblings = [{"rfilename": path} for path in self.hub.commits[commit]]
            info = {"id": self.hub.repo_id, "sha": commit, "siblings": siblings}
            info |= {"private": False, "gated": "auto" if self.hub.token else False}
            self._json(name, info)
        elif route == "refs":
            main = {"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": commit}
            self._json(name, {"branches": [main], "converts": [], "tags": []})
        elif route == "tree":
            self._tree(name, commit, path)
        elif route == "paths-info":
            blobs = self.hub.commits[commit]
            wanted = [blobs.get(path) for path in self.form.get("paths", [])]
            self._json(name, [self._entry(blob) for blob in wanted if blob])
        elif route == "auth-check":
            if not self._is_barred(name):
                self._json(name, {})
        elif route == "xet-read-token" and self.hub.xet:
            if not self._is_barred(name):
                expires = str(int(time.time()) + 3600)
                headers = {"X-Xet-Cas-Url": self.hub.xet, "X-Xet-Access-Token": "xet"}
                self._json(name, {}, headers | {"X-Xet-Token-Expiration": expires})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", name)

    def _entry(self, blob: Blob) -> dict[str, Any]:
        size = self.hub.faults.sizes.get(blob.path, blob.size)
        entry = {"type": "file", "path": blob.path, "size": size, "oid": blob.git_id}
        if blob.is_large:
            pointer_size = len(pointer(blob.sha256, blob.size))
            entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": pointer_size}
            if self.hub.xet:
                entry["xetHash"] = blob.sha256
        return entry

    def _tree(self, name: str, commit: str, folder: str) -> None:
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for blob in self.hub.commits[commit].values():
            if not blob.path.startswith(prefix):
                continue
            parts = blob.path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                inner = prefix + "/".join(parts[:depth])
                if inner not in folders:
                    folders.add(inner)
                    oid = hashlib.sha1(inner.encode()).hexdigest()
                    entries.append({"type": "directory", "path": inner, "size": 0, "oid": oid})
            if recursive or len(parts) == 1:
                entries.append(self._entry(blob))
        if prefix and not entries:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", name)
            return
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE_SIZE < len(entries):
            where = f"{self.hub.endpoint}/api/datasets/{self.hub.repo_id}/tree/{commit}"
            where += f"/{quote(folder, safe='')}" if folder else ""
            query = f"recursive={recursive}&cursor={start + PAGE_SIZE}"
            headers["Link"] = f'<{where}?{query}>; rel="next"'
        self._json(name, entries[start : start + PAGE_SIZE], headers)

    def _whoami(self) -> None:
        given = self.headers.get("Authorization")
        if given and self.hub.token in (None, given.removeprefix("Bearer ")):
            self._json("api:whoami", {"type": "user", "name": "local", "orgs": []})
        else:
            self._refuse(HTTPStatus.UNAUTHORIZED, None, "api:whoami")

    def _resolve(self, revision: str, path: str) -> None:
        commit = self.hub.commit if revision == BRANCH else revision
        if commit not in self.hub.commits:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", path)
            return
        blobs, faults = self.hub.commits[commit], self.hub.faults
        blob = blobs.get(faults.swapped.get(path, path))
        if self._is_barred(path) or self._is_refused(path):
            return
        if blob is None or path in faults.vanished or not blob.is_there:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", path)
        elif blob.is_large and self.hub.storage and self.command == "GET":
            where = f"{self.hub.storage.address}{STORAGE}{commit}/{quote(blob.path)}?signature=1"
            headers = {"Location": where, "Content-Length": "0"} | linked(blob)
            self._head(HTTPStatus.FOUND, headers, path, commit)
        else:
            self._file(blob, commit, path)

    def _is_barred(self, name: str) -> bool:
        """Refuse who may not read gated files (the two answers of huggingface.co)."""
        given = self.headers.get("Authorization")
        if self.hub.token is None or given == f"Bearer {self.hub.token}":
            return False
        status = HTTPStatus.FORBIDDEN if given else HTTPStatus.UNAUTHORIZED
        self._refuse(status, "GatedRepo", name)
        return True
