"""Malicious hubs and servers that are not hubs: no user file changes and no secret is sent."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from avomni_lib.dataset.download import download, transfer
from avomni_lib.dataset.download.backoff import Backoff
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import folder_run, local_hub
from tests.answering_server import Answer, Answering, answering

REPO = "avomni/world"
COMMIT, OID, SHA256 = "c0" * 20, "ab" * 20, "cd" * 32
ZIP = "labels/egomotion/egomotion.chunk_0000.zip"
TOKEN = "hf_a_secret_of_the_user"


def entry(**changes: Any) -> dict[str, Any]:
    """A large file as a hub lists it."""
    lfs = {"oid": SHA256, "size": 9, "pointerSize": 130}
    listed = {"type": "file", "path": ZIP, "size": 9, "oid": OID, "lfs": lfs}
    return listed | changes


def lfs(**changes: Any) -> dict[str, Any]:
    return {"lfs": {"oid": SHA256, "size": 9, "pointerSize": 130} | changes}


def hub_that_lists(listed: Any) -> Callable[[str], Answer]:
    """A hub whose responses are valid except for its listing."""

    def answer(path: str) -> Answer:
        if path.endswith("/refs"):
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            return Answer({"branches": [main], "converts": [], "tags": []})
        return Answer(listed) if "/paths-info/" in path else Answer({})

    return answer


@pytest.fixture
def server() -> Iterator[Answering]:
    with answering(hub_that_lists([])) as server:
        yield server


def hub_of(server: Answering, **options: Any) -> Hub:
    return Hub(REPO, endpoint=server.endpoint, backoff=Backoff(0.01, 3), **options)


BAD_LISTINGS = {
    "git id leaves the folder": entry(oid="/../../../../victim.txt", lfs=None),
    "sha256 leaves the folder": entry(**lfs(oid="/../../../../victim.txt")),
    "sha256 is absolute": entry(**lfs(oid="/tmp/victim")),
    "sha256 is short": entry(**lfs(oid="ab" * 31)),
    "sha256 is in capitals": entry(**lfs(oid=SHA256.upper())),
    "sha256 with a line break": entry(**lfs(oid=SHA256 + "\n")),
    "sha256 in Arabic digits": entry(**lfs(oid="\u0661" * 64)),
    "sha256 is a list": entry(**lfs(oid=[SHA256])),
    "sha256 is a number": entry(**lfs(oid=7)),
    "git id is null": entry(oid=7, lfs=None),
    "Xet hash": entry(xetHash="../x"),
    "size is negative": entry(size=-1),
    "size is true": entry(size=True),
    "size is a fraction": entry(size=9.0),
    "size is text": entry(size="9"),
    "size is null": entry(size=None),
    "size is huge": entry(size=10**400),
    "path leaves the folder": entry(path="labels/../../victim.txt"),
    "path is absolute": entry(path="/tmp/victim.txt"),
    "path is hidden": entry(path=".avomni/verified.json"),
    "path holds NUL": entry(path="labels/a\0b"),
    "path holds a backslash": entry(path="labels\\..\\victim.txt"),
    "path is on a drive": entry(path="C:/victim.txt"),
    "path has an empty part": entry(path="labels//a"),
    "path ends in a dot": entry(path="labels./a"),
    "path has a surrogate": entry(path="labels/\ud800"),
    "path has a bidi override": entry(path="labels/\u202egpj.exe"),
    "path is long": entry(path="a" * 300),
    "path is deep": entry(path="a/" * 2000 + "a"),
    "path is a list": entry(path=[ZIP]),
    "path is null": entry(path=None),
}


@pytest.mark.parametrize("listed", BAD_LISTINGS.values(), ids=BAD_LISTINGS)
def test_unsafe_listing_is_refused_and_changes_no_file(
    server: Answering, tmp_path: Path, listed: dict[str, Any]
):
    data = tmp_path / "a/b/data"
    (data / transfer.PARTIALS).mkdir(parents=True)
    (tmp_path / "victim.txt").write_text("mine")
    before = folder_run.content(tmp_path)
    server.answer = hub_that_lists([listed])
    p = Params.from_values({"dataset": {"source": "hub", "repo_id": REPO, "local_dir": str(data)}})
    accepted = p.dataset.model_copy(update={"license_accepted": True})
    with pytest.raises(AvomniError, match="is refused"):
        download.fetch(p.model_copy(update={"dataset": accepted}), hub_of(server))
    with pytest.raises(AvomniError, match="is refused") as caught:
        hub_of(server).sizes([ZIP])
    assert server.endpoint in caught.value.where
    assert len(str(caught.value)) < 1500 and str(caught.value).replace("\n", "").isprintable()
    assert {
        k: v for k, v in folder_run.content(tmp_path).items() if "/.avomni/lock" not in k
    } == before


def test_unrequested_listing_entry_is_ignored(server: Answering):
    server.answer = hub_that_lists([entry(), entry(path="features.csv", lfs=None)])
    assert hub_of(server).sizes([ZIP]).keys() == {ZIP}


@pytest.mark.parametrize("commit", ["../..", "c0" * 19, None, 7, ["c0" * 20], "C0" * 20, "main"])
def test_commit_must_be_40_hex_digits(server: Answering, commit: Any):
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
    refs = Answer({"branches": [main], "converts": [], "tags": []})
    server.answer = lambda path: (
        refs if path.endswith("/refs") else Answer({"id": 1, "sha": commit})
    )
    for revision in (None, "v1"):
        with pytest.raises(AvomniError, match="the commit .* is refused"):
            _ = hub_of(server, revision=revision).commit


NO_HUB = {
    "a web page": Answer(b"<html>Sign in</html>", headers={"Content-Type": "text/html"}),
    "a web page without its type": Answer(b"<!doctype html><p>Welcome to our hotel"),
    "an empty body": Answer(b""),
    "no content": Answer(b"", 204),
    "not modified": Answer(b"", 304),
    "truncated JSON": Answer(b'[{"type": "file", "path": "fea'),
    "invalid UTF-8": Answer(b'"\xff\xfe\xff"'),
    "null": Answer(b"null"),
    "a number": Answer(7),
    "true": Answer(b"true"),
    "text": Answer("a hub"),
    "a list of numbers": Answer([1, 2]),
    "a list of null": Answer([None]),
    "a list of lists": Answer([[]]),
    "an empty object in a list": Answer([{}]),
    "another program's answer": Answer({"error": 0, "branches": 7, "status": "ok"}),
    "deep JSON": Answer(b"[" * 200_000),
    "a number of ten thousand digits": Answer(b"9" * 10_000),
    "a file without a size": Answer([{"type": "file", "path": ZIP, "oid": OID}]),
    "a file whose lfs is text": Answer([entry(lfs="sha256")]),
    "a file whose lfs is empty": Answer([entry(lfs={"oid": SHA256})]),
    "a file of no type": Answer([{"path": ZIP, "size": 9, "oid": OID}]),
}


@pytest.mark.parametrize("given", NO_HUB.values(), ids=NO_HUB)
@pytest.mark.parametrize("revision", [None, "v1", COMMIT], ids=["refs", "revision", "paths-info"])
def test_response_that_is_not_a_hubs_is_one_error(
    server: Answering, given: Answer, revision: str | None
):
    server.answer = lambda path: given
    with pytest.raises(AvomniError, match="what answers is no hub: asked for ") as caught:
        hub_of(server, revision=revision).sizes([ZIP])
    assert caught.value.where == server.endpoint
    assert "dataset.endpoint" in caught.value.fix


def test_invalid_branch_list_is_refused(server: Answering):
    for branches in ([], None, [None], {}, "main"):
        server.answer = lambda path, b=branches: Answer({"branches": b, "converts": [], "tags": []})
        with pytest.raises(AvomniError, match="no hub|no branch main"):
            _ = hub_of(server).commit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "published" / ZIP
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(100_000))
    return tmp_path / "published"


def test_web_page_in_place_of_a_file_keeps_the_partial(folder: Path, tmp_path: Path):
    """As when a captive portal asks to sign in again during a download."""
    content = (folder / ZIP).read_bytes()
    with local_hub.serve(folder, REPO) as real:
        remote = Hub(REPO, endpoint=real.endpoint).sizes([ZIP])[ZIP]
        partial = transfer.path_of(tmp_path / "data", remote)
        partial.parent.mkdir(parents=True)
        partial.write_bytes(content[:60_000])
        with (
            answering(lambda path: NO_HUB["a web page"]) as portal,
            pytest.raises(AvomniError, match="what answers is no hub: .* it sends a web page"),
        ):
            hub_of(portal, revision=COMMIT).fetch(remote, tmp_path / "data")
        assert partial.read_bytes() == content[:60_000]
        Hub(REPO, endpoint=real.endpoint).fetch(remote, tmp_path / "data")
        assert real.requests[-1].start == 60_000


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "\u00b2"},
        {"Retry-After": "9" * 5000},
        {"Retry-After": "Mon, 99 Foo 99999 99:99:99 GMT"},
        {"RateLimit": f'"api";r=0;t={"9" * 5000}'},
    ],
    ids=["a superscript digit", "a huge wait", "an invalid date", "a long number"],
)
def test_invalid_wait_headers_end_in_one_error(server: Answering, headers: dict[str, str]):
    server.answer = lambda path: Answer(b"", 429, headers)
    with pytest.raises(AvomniError, match="takes no more requests|is no hub"):
        hub_of(server, revision=COMMIT).sizes([ZIP])


@pytest.mark.parametrize("sent", ["bytes 9-", f"bytes {'1' * 5000}-2/9", "bytes 0-8/9", "\x1b[2J"])
def test_unrequested_range_is_not_written(server: Answering, tmp_path: Path, sent: str):
    remote = RemoteFile(ZIP, 9, SHA256)
    partial = transfer.path_of(tmp_path, remote)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"1234")
    server.answer = lambda path: Answer(b"56789", 206, {"Content-Range": sent})
    with pytest.raises(AvomniError, match="arrived damaged twice") as caught:
        hub_of(server, revision=COMMIT).fetch(remote, tmp_path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not (tmp_path / ZIP).exists()


# ---- secrets


PLAIN = """
http://hub.example http://hub.example:8080/path HTTP://HUB.EXAMPLE http://10.0.0.1 http://127.1
http://localhost. http://localhost.evil.example http://127.0.0.1.nip.io http://xlocalhost
http://0.0.0.0 http://2130706433 http://0177.0.0.1 http://[::] http://[::2]
http://[::ffff:127.0.0.1]
http://127.0.0.1@evil.example http://localhost:80@evil.example http://user@evil.example
"""
PRIVATE = """
https://hub.example http://127.0.0.1:8000 http://127.8.9.1 http://localhost http://LocalHost:1
http://[::1]:80 https://user:secret@hub.example
"""
AMBIGUOUS = r"""
hub.example ftp://hub.example file:///etc/passwd http:// http:///x http://[::1
http://127.0.0.1\@evil.example http://127.0.0.1#@evil.example http://127.0.0.1?@evil.example
http://a:secret@b@evil.example https://hub.example:port
https://user:se/secret@hub.example https://hub.example/?a=secret
"""
WITH_BLANKS = ["http://evil.example /x", "http://evil.example\n127.0.0.1", ""]
OTHER_DIGITS = ["http://\uff11\uff12\uff17.0.0.1", "http://127\u30020\u30020\u30021"]


@pytest.mark.parametrize("endpoint", PLAIN.split())
def test_token_is_not_sent_unencrypted_to_another_host(endpoint: str):
    with pytest.raises(AvomniError, match="unencrypted") as caught:
        Hub(REPO, endpoint=endpoint, token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert "dataset.allow_plain_http" in caught.value.fix
    Hub(REPO, endpoint=endpoint, token=TOKEN, allow_plain_http=True)


@pytest.mark.parametrize("endpoint", PRIVATE.split())
def test_token_is_allowed_over_https_and_to_localhost(endpoint: str):
    Hub(REPO, endpoint=endpoint, token=TOKEN)


@pytest.mark.parametrize("endpoint", [*AMBIGUOUS.split(), *WITH_BLANKS, *OTHER_DIGITS])
def test_ambiguous_endpoint_is_refused(endpoint: str):
    with pytest.raises(AvomniError, match="no address of a hub") as caught:
        Hub(REPO, endpoint=endpoint, token=TOKEN)
    assert "secret" not in str(caught.value)


def in_process(code: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run with these variables; huggingface_hub reads its own when it is imported."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    env = {k: v for k, v in os.environ.items() if k.lower() not in proxies and "HF_" not in k}
    env |= {"HF_HOME": str(tmp_path / "home"), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


ASK = f"from avomni_lib.dataset.download.hub import Hub; Hub({REPO!r}, {COMMIT!r}).sizes(['a'])"


def test_endpoint_from_the_environment_is_checked_too(server: Answering, tmp_path: Path):
    """The test server is the proxy and sees requests to a host that does not exist."""
    plain = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://hub.example", "http_proxy": server.endpoint}
    ran = in_process(ASK, tmp_path, **plain)
    assert "unencrypted to http://hub.example" in ran.stderr and "HF_ENDPOINT" in ran.stderr
    assert server.asked == []
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/token").write_text(TOKEN)
    saved = {name: value for name, value in plain.items() if name != "HF_TOKEN"}
    assert "unencrypted" in in_process(ASK, tmp_path, **saved).stderr
    assert server.asked == []
    without = in_process(ASK, tmp_path, **saved, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    assert "unencrypted" not in without.stderr
    assert server.asked[-1].endswith(f"/paths-info/{COMMIT}") and server.secrets == []


def test_base_model_is_not_fetched_with_an_unencrypted_token(server: Answering, tmp_path: Path):
    plain = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://hub.example", "http_proxy": server.endpoint}
    code = "from avomni_lib.training.model.load import read_config; read_config('a/b', 'a/b')"
    ran = in_process(code, tmp_path, **plain)
    assert "unencrypted to http://hub.example" in ran.stderr and TOKEN not in ran.stderr
    assert server.secrets == []


def test_users_token_is_not_sent_to_a_local_hub(server: Answering, tmp_path: Path):
    assert in_process(ASK, tmp_path, HF_TOKEN=TOKEN, HF_ENDPOINT=server.endpoint).returncode == 0
    assert server.asked and server.secrets == []


def test_allow_plain_http_permits_an_unencrypted_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = {"source": "hub", "endpoint": "http://hub.example", "repo_id": "a/b"}
    with pytest.raises(AvomniError, match="unencrypted") as caught:
        runs.open_hub(Params.from_values({"dataset": hub}))
    assert TOKEN not in str(caught.value)
    runs.open_hub(Params.from_values({"dataset": hub | {"allow_plain_http": True}}))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_host_carries_no_secret(server: Answering, tmp_path: Path, status: int):
    with answering(hub_that_lists([entry()])) as other:
        where = f"http://localhost:{other.port}"
        server.answer = lambda path: Answer(b"", status, {"Location": where + path})
        hub = hub_of(server, token=TOKEN)
        hub.check_access()
        assert hub.commit == COMMIT
        hub.sizes([ZIP])
        with pytest.raises(AvomniError):
            hub.fetch(RemoteFile(ZIP, 9, SHA256), tmp_path)
        assert len(other.asked) >= 4 and other.secrets == []
        assert len(server.secrets) == len(server.asked)


def test_password_in_the_endpoint_is_sent_and_never_shown(
    server: Answering, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    address = server.endpoint.replace("://", "://user:pa%40ss-secret@")
    with caplog.at_level(logging.DEBUG):
        hub = Hub(REPO, endpoint=address, backoff=Backoff(0.01, 2))
        assert hub.commit == COMMIT
        shown = [repr(hub), hub.page, hub.endpoint, repr(vars(hub.at(COMMIT)).get("endpoint"))]
        for status in (401, 403, 404, 500, 302, 200):
            server.answer = lambda path, s=status: Answer(
                b"<html>", s, {"Location": server.endpoint}
            )
            with pytest.raises(AvomniError) as caught:
                hub.sizes([ZIP])
            shown.append(str(caught.value) + repr(caught.value))
        dead = Hub(REPO, endpoint="http://user:pa-secret@127.0.0.1:1", backoff=Backoff(0.01, 2))
        with pytest.raises(AvomniError, match="no connection to the hub") as caught:
            _ = dead.commit
        shown.append(str(caught.value))
    assert set(server.secrets) == {"Basic dXNlcjpwYUBzcy1zZWNyZXQ="}
    assert len(server.secrets) == len(server.asked)
    assert "secret" not in " ".join(shown) + caplog.text and "pa%40" not in " ".join(shown)


def test_password_is_not_sent_unencrypted_to_another_host():
    with pytest.raises(AvomniError, match="unencrypted to http://hub.example") as caught:
        Hub(REPO, endpoint="http://user:secret@hub.example")
    assert "secret" not in str(caught.value)
    Hub(REPO, endpoint="https://user:secret@hub.example")


@pytest.mark.parametrize("where", ["what", "where", "fix"])
def test_errors_hide_passwords_in_addresses(where: str):
    text = "see https://user:pass@word@hub.example/a, http://t@h.example and a@b.example"
    error = AvomniError("x", **{where: text}) if where != "what" else AvomniError(text)
    assert "see https://hub.example/a, http://h.example and a@b.example" in str(error)
    assert "pass" not in repr(error) + str(error.args)


def test_params_refuse_an_endpoint_with_a_password(tmp_path: Path):
    for address in ("https://user:secret@hub.example", ["https://user:secret@hub.example"]):
        with pytest.raises(AvomniError) as caught:
            Params.from_values({"dataset": {"endpoint": address}})
        assert "dataset.endpoint" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "token", ["hf_\u00e9secret", "hf_a secret", "hf_a\nsecret", "hf_\x00secret"]
)
def test_malformed_token_is_refused_and_not_shown(server: Answering, token: str):
    with pytest.raises(AvomniError, match="characters that no token has") as caught:
        hub_of(server, token=token)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "repo_id", ["a/b/c", "../..", "/etc", "a/..", "a b/c", "", "a/b\n", "a?b=1"]
)
def test_malformed_repo_id_is_refused(server: Answering, repo_id: str):
    with pytest.raises(AvomniError, match="no name of a data set"):
        Hub(repo_id, endpoint=server.endpoint)


@pytest.mark.parametrize(
    "revision", ["..", "../../whoami-v2", "/x", "a b", "a?b", "a\0", "a#b", "", "%2e"]
)
def test_malformed_revision_is_refused(server: Answering, revision: str):
    with pytest.raises(AvomniError, match="the revision .* is refused"):
        hub_of(server, revision=revision)


# ---- the local hub


def test_local_hub_serves_nothing_outside_its_folder(folder: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/other.txt").write_text("mine")
    (folder / ".hidden").write_text("mine")
    (folder / "within.zip").symlink_to(folder / ZIP)
    for name, target in {
        "link.txt": tmp_path / "secret.txt",
        "relative.txt": Path("../secret.txt"),
        "folder": tmp_path / "elsewhere",
        "system.txt": Path("/etc/hostname"),
        "hidden.txt": folder / ".hidden",
        "dead.txt": tmp_path / "nothing",
        "loop.txt": folder / "loop.txt",
    }.items():
        (folder / name).symlink_to(target)
    (folder / "chain.txt").symlink_to(folder / "link.txt")
    with local_hub.serve(folder, REPO) as real:
        assert set(real.blobs) == {ZIP, "within.zip"}
        hub = Hub(REPO, endpoint=real.endpoint, backoff=Backoff(0.01, 2))
        for remote in hub.sizes([ZIP, "within.zip"]).values():
            assert hub.fetch(remote, tmp_path / "data").read_bytes() == (folder / ZIP).read_bytes()


@pytest.mark.parametrize("of_folder", [False, True])
def test_local_hub_does_not_serve_a_file_replaced_by_a_link(
    folder: Path, tmp_path: Path, of_folder: bool
):
    with local_hub.serve(folder, REPO) as real:
        hub = Hub(REPO, endpoint=real.endpoint, backoff=Backoff(0.01, 2))
        remote = hub.sizes([ZIP])[ZIP]
        place = (folder / ZIP).parent if of_folder else folder / ZIP
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved")
        with pytest.raises(AvomniError, match="gone from the source"):
            hub.fetch(remote, tmp_path / "data")
        assert real.bytes_of(ZIP) == 0


@pytest.mark.parametrize("where", ["http://hub.example", "local://{}/store", "file://{}/store", ""])
def test_insecure_xet_address_falls_back_to_plain_download(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
):
    with local_hub.serve(folder, REPO, xet=where.format(tmp_path)) as real:
        hub = Hub(REPO, endpoint=real.endpoint, token=TOKEN, backoff=Backoff(0.01, 3))
        remote = hub.sizes([ZIP])[ZIP]
        assert hub.fetch(remote, tmp_path / "data").read_bytes() == (folder / ZIP).read_bytes()
    assert not (tmp_path / "store").exists()
    assert bool(where) == ("Xet fails" in caplog.text)
