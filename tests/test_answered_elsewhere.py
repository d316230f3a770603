"""Evaluation with several processes or a server equals evaluation in this process."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import ladder, models
from avomni_lib.evaluation.answer import Batch
from avomni_lib.evaluation.models import RemoteAnswerer
from avomni_lib.live.session import RECORD_FILE, LiveSession
from avomni_lib.live.ticks import Ready
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.model.generate import Sampling
from tests.test_ladder import changed, trained
from tests.test_live import NAMES as NAMES_OF_CAMERAS
from tests.test_live import Clock, p_of

NAMES = {"tiny-base": "base", "avomni": "adapted", "avomni-blind": models.BLIND_ROW}


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    """A trained run whose prompts contain the ego history."""
    changes = {"prompt": {"ego_history": True}, "evaluation": {"max_windows": 6}}
    return trained(tmp_path_factory.mktemp("elsewhere"), changes)


@pytest.fixture(scope="module")
def here(p, tmp_path_factory):
    return ladder.evaluate(p, tmp_path_factory.mktemp("here"))


class ModelServer:
    """An HTTP server of a run's models that predicts from the request alone."""

    def __init__(self, p: Params):
        windows = ladder.held_out_windows(p)
        self.local, self.lock = models.Local(p, windows), threading.Lock()
        self.served = list(NAMES)
        self.asked: list[dict] = []
        self.fails: list[int] = []  # statuses that come before the next answer
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send(200, {"data": [{"id": name} for name in stand.served]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand.lock:
                    if stand.fails:
                        return self.send(stand.fails.pop(), {"error": "not now"})
                    stand.asked.append(body)
                    text = stand.answer(body)
                self.send(200, {"choices": [{"message": {"content": text}}]})

            def send(self, status, body):
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, body: dict) -> str:
        video, words = body["messages"][0]["content"]
        pictures = video["video_url"]["url"].removeprefix("data:video/jpeg;base64,").split(",")
        frames = np.stack([np.array(Image.open(io.BytesIO(base64.b64decode(e)))) for e in pictures])
        conversation, row = self.local._conversation, NAMES[body["model"]]
        assert words["text"].startswith(conversation.words)
        self.local._shown[row] = Shown(frames)
        history = words["text"].removeprefix(conversation.words)
        return self.local(Batch(row, 0, 0, (0,), (history,)))[0]


class Shown:
    def __init__(self, frames):
        self._frames = frames

    def frames(self, index):
        return self._frames


@pytest.fixture(scope="module")
def stand(p):
    stand = ModelServer(p)
    yield stand
    stand.http.shutdown()
    stand.http.server_close()


@pytest.fixture
def asking(p, stand, monkeypatch):
    """The run with `evaluation.server` set to the server's URL."""
    monkeypatch.setattr(models, "WAITS_S", (0.01, 0.01, 0.01))
    stand.served, stand.fails = list(NAMES), []
    stand.asked.clear()
    return changed(p, evaluation={"server": stand.url})


def test_two_processes_predict_the_same_as_one(p, here, tmp_path):
    two = changed(
        p, training={"num_processes": 2, "gradient_accumulation_steps": 2, "batch_size": 2}
    )
    assert "in 2 processes" in str(ladder.plan(two))
    there = ladder.evaluate(two, tmp_path)
    assert there.path.read_bytes() == here.path.read_bytes()


class Killed(Bar):
    def update(self, amount=1, note=""):
        super().update(amount, note)
        if self.count >= 12:
            raise KeyboardInterrupt


def test_one_process_resumes_the_work_of_two(p, here, tmp_path):
    two = changed(
        p, training={"num_processes": 2, "gradient_accumulation_steps": 2, "batch_size": 2}
    )
    with pytest.raises(KeyboardInterrupt):
        ladder.evaluate(two, tmp_path, progress=Killed)
    num_kept = len((tmp_path / ladder.KEPT_FILE).read_text().splitlines())
    assert num_kept >= 2
    assert ladder.evaluate(p, tmp_path).path.read_bytes() == here.path.read_bytes()


def test_server_and_local_models_give_the_same_scores(asking, here, stand, tmp_path):
    assert stand.url in str(ladder.plan(asking))
    stand.fails = [503, 429]  # busy for a moment
    there = ladder.evaluate(asking, tmp_path)
    assert there.path.read_bytes() == here.path.read_bytes()
    assert {body["model"] for body in stand.asked} == set(NAMES)
    assert all(body["temperature"] == 0 for body in stand.asked)


def test_server_receives_the_sampling_options_and_the_regex(asking, stand):
    constrained = changed(asking, evaluation={"constrained": True})
    windows = ladder.held_out_windows(constrained)
    asker = models.asker(constrained, windows)
    batch = Batch("adapted", 1, 0, (0, 1), ("", ""), Sampling(0.7, 0.9, 2**40))
    list(asker([batch]))
    assert len(stand.asked) == 2
    for body in stand.asked:
        assert (body["temperature"], body["top_p"]) == (0.7, 0.9) and body["seed"] < 2**31
        assert "Total displacement" in body["structured_outputs"]["regex"]


@pytest.mark.parametrize(
    ("served", "what"),
    [
        (["avomni", "avomni-blind"], "avomni, avomni-blind"),
        (["tiny-base", "avomni"], "tiny-base, avomni"),
    ],
    ids=["no base", "no blind adapter"],
)
def test_server_without_a_model_is_refused_with_the_command_to_start_it(
    asking, stand, tmp_path, served, what
):
    stand.served = served
    with pytest.raises(AvomniError, match=f"the server has {what}, and") as error:
        ladder.evaluate(asking, tmp_path)
    assert "--lora-modules avomni=" in str(error.value) and stand.asked == []


def test_predictions_are_kept_when_the_server_fails(asking, here, stand, tmp_path):
    class Gone(Bar):
        def update(self, amount=1, note=""):
            super().update(amount, note)
            if self.count == 6:
                stand.fails = [500] * 100

    with pytest.raises(AvomniError, match="answers 500"):
        ladder.evaluate(asking, tmp_path, progress=Gone)
    stand.fails = []
    num_before = len(stand.asked)
    assert ladder.evaluate(asking, tmp_path).path.read_bytes() == here.path.read_bytes()
    assert len({json.dumps(body) for body in stand.asked}) == len(stand.asked) > num_before


def test_live_session_continues_while_the_server_is_down(tmp_path, caplog):
    clock, is_up = Clock(), iter([True, False, False, True, True])

    def ask(frames):
        if not next(is_up):
            raise AvomniError("the server does not answer", where="http://127.0.0.1:9/v1")
        return "5 m/s"

    seen = []
    session = LiveSession(
        p_of(), ask, tmp_path, clock, lambda state: seen.append((state.num_failed, state.failure))
    )
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with session.record:
        predictions = [session.attempt(Ready(number, frames, 0, 0, 0)) for number in range(5)]
    assert [prediction and prediction.tick for prediction in predictions] == [0, None, None, 3, 4]
    why = "the server does not answer"
    assert seen == [(0, None), (1, why), (2, why), (2, None), (2, None)]
    assert session.counts()["num_failed"] == 2
    assert [prediction.levelname for prediction in caplog.records] == ["WARNING"], "logged once"
    lines = [json.loads(line) for line in (tmp_path / RECORD_FILE).open()]
    assert [line["tick"] for line in lines if line["kind"] == "failed"] == [1, 2]


def test_live_session_without_any_answer_raises_the_servers_error():
    video = "lavfi:testsrc2=size=64x48:rate=30"
    p = p_of(sources=dict.fromkeys(NAMES_OF_CAMERAS, video), clock="file", hop=1)
    remote = RemoteAnswerer(p, "http://127.0.0.1:9/v1", "?", timeout_s=1)
    session = LiveSession(p, remote.ask)
    with pytest.raises(AvomniError, match="the server does not answer"):
        session.run(seconds=3)
    assert session.counts()["num_failed"] >= 1 and session.counts()["num_ticks"] > 5
