"""`export --push`: the adapter and its card, by the real client to a local hub."""

import base64
import json
from http import HTTPStatus

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import CONFIDENTIAL, Params
from avomni_lib.training.export.push import push
from avomni_lib.training.fit import checkpoints
from avomni_lib.training.model import adapter
from avomni_world.local_hub import HubHandler, LocalHub
from tests import training_set
from tests.test_card import FIGURES, record_of

REPO, COMMIT = "somebody/adapter", "a" * 40


class ReceivingHandler(HubHandler):
    """The routes with which huggingface_hub creates a repository and commits to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        hub = self.hub
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self.json({"url": f"{self.server.address}/{REPO}"})
        elif "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.json({"files": modes})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            hub.taken = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            url = f"{self.server.address}/{REPO}/commit/{COMMIT}"
            self.json({"commitUrl": url, "commitOid": COMMIT})
        elif self.path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")


class ReceivingHub(LocalHub):
    handler = ReceivingHandler
    created = None
    taken: dict = {}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a").write_text("a")
    with ReceivingHub(tmp_path / "served", REPO) as running:
        yield running


def run_with_adapter(tmp_path, hub, source="world", accepted=True) -> Params:
    dataset = {"source": source, "license_accepted": accepted, "endpoint": hub.endpoint}
    if source == "hub":
        dataset["repo_id"] = "owner/drives"
    p = training_set.params(tmp_path, "owner/base", dataset=dataset)
    folder = adapter.adapter_dir(p)
    folder.mkdir(parents=True)
    record = record_of(tmp_path / "record", dataset={"source": source})
    files.write_json(folder / adapter.RECORD_FILE, record)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes(name.encode() * 9)
    (folder / "README.md").write_text("the run's own")
    checkpoints.write_checksums(folder)
    return p


def test_push_uploads_the_adapter_and_a_card_with_energy(tmp_path, hub):
    p = run_with_adapter(tmp_path, hub)
    pushed = push(p, REPO, FIGURES)
    assert pushed["commit"] == COMMIT and "private" in json.dumps(hub.created) and pushed["private"]
    folder = adapter.adapter_dir(p)
    assert set(hub.taken) == {path.name for path in folder.iterdir()}
    for name in set(hub.taken) - {"README.md"}:
        assert hub.taken[name] == (folder / name).read_bytes(), name
    text = hub.taken["README.md"].decode()
    assert "| kWh of training | 0.2195 |" in text and "library_name: peft" in text
    assert (folder / "README.md").read_text() == "the run's own"


def test_push_refuses_confidential_adapters_without_the_option(tmp_path, hub):
    p = run_with_adapter(tmp_path, hub, "hub")
    with pytest.raises(AvomniError, match="contains confidential data") as caught:
        push(p, REPO, FIGURES)
    assert "--share-confidential" in caught.value.fix and hub.created is None
    push(p, REPO, FIGURES, share_confidential=True)
    assert CONFIDENTIAL in hub.taken["README.md"].decode()


def test_push_requires_the_accepted_licence(tmp_path, hub):
    p = run_with_adapter(tmp_path, hub, "hub", accepted=False)
    with pytest.raises(AvomniError, match="license_accepted is false"):
        push(p, REPO, share_confidential=True)
    assert hub.created is None


def test_push_refuses_a_damaged_adapter_and_an_invalid_name(tmp_path, hub):
    p = run_with_adapter(tmp_path, hub)
    with pytest.raises(AvomniError, match="cannot be pushed"):
        push(p, "a/b/c")
    (adapter.adapter_dir(p) / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(AvomniError):
        push(p, REPO)
    assert not hub.taken
