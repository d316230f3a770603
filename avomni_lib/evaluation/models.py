"""Opens and runs the models of the ladder: in this process, one process per card, or on a server.

A server has OpenAI's chat endpoint, as vLLM serves a base model and its adapters.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import json
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avomni_lib import files, hardware, workers
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.evaluation import answer
from avomni_lib.evaluation.answer import Asker, Batch, FrameSource
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from avomni_lib.training.export.card import SERVED_NAME
from avomni_lib.training.model import adapter, load
from avomni_lib.training.model.generate import Sampling, generate_texts
from avomni_lib.training.prompt import samples, views
from avomni_lib.training.prompt.conversation import Conversation, prompt_text, videos_of
from avomni_lib.training.targets import target_of

log = logging.getLogger(__name__)
TIMEOUT_S, LIVE_TIMEOUT_S = 120.0, 15.0
WAITS_S = (1.0, 4.0, 16.0)  # pauses before a request is repeated
ADAPTER, BLIND_ADAPTER = SERVED_NAME, f"{SERVED_NAME}-blind"  # names for vLLM's --lora-modules
MOST_BYTES = 1_000_000  # limit of a response
BASE_ROW, BLIND_ROW = "base", "trained_blind"
BLIND = "blind"  # name under which PEFT holds the second adapter


def shown(p: Params, windows: Windows) -> dict[str, FrameSource]:
    """Row of the ladder -> the frames that its model sees."""
    rows: dict[str, FrameSource] = {
        BASE_ROW: windows,
        "blind": views.Black(windows),
        "shuffled": views.Shuffled(windows, p.run.seed),
        "one_camera": views.OneCamera(windows, cameras.grid(p.vision.cameras).front.name),
        "adapted": windows,
    }
    return rows if blind_adapter(p) is None else rows | {BLIND_ROW: views.Black(windows)}


def blind_adapter(p: Params) -> Path | None:
    """The folder of the adapter that was trained on black frames; None if there is none."""
    blind = p.blinded()
    if blind is None or not (adapter.adapter_dir(blind) / adapter.RECORD_FILE).exists():
        return None
    return adapter.adapter_dir(blind)


def asker(p: Params, windows: Windows) -> Asker:
    """The function that answers batches of the ladder's rows.

    It uses `evaluation.server` if that is set; otherwise `training.num_processes` processes with
    one card each (at most the number of cards); otherwise this process. The answers to a batch do
    not depend on the number of processes.

    Raises:
        AvomniError: the server does not serve the adapters that are needed.
    """
    if p.evaluation.server is not None:
        return answer.one_by_one(lambda: ModelServer(p, windows))
    cards = hardware.num_cards()
    num_processes = min(p.training.num_processes, cards or p.training.num_processes)
    if num_processes > 1:
        return functools.partial(_in_processes, p, num_processes)
    return answer.one_by_one(lambda: Local(p, windows))


def place_in_words(p: Params) -> str:
    """Where the models run, as text."""
    if p.evaluation.server is not None:
        return f"by the server at {p.evaluation.server}"
    if p.training.num_processes > 1:
        return f"in {p.training.num_processes} processes, one card each"
    return "in this process"


def opened(
    p: Params, header: Mapping[str, Any], folder: Path | None
) -> tuple[Any, Conversation, dict[str, hardware.Choice]]:
    """The base model with an adapter, its conversation, and the choices made on loading.

    Args:
        folder: The adapter's folder; None loads the base model alone.

    Raises:
        AvomniError: there is no adapter, or it does not match this cache or `p`.
    """
    if folder is not None:  # before the weights are loaded
        load.check_adapter(folder, p, header)
    base = load.load_base(p)
    kind = backbone(p.model.backbone, base.model.config)
    conversation = samples.conversation_of(p, base.tokenizer, kind)
    if folder is None:
        return base.model, conversation, base.choices
    return load.load_adapter(base.model, folder, p, header), conversation, base.choices


class Local:
    """Base model and adapters in this process."""

    def __init__(self, p: Params, windows: Windows):
        self._p, self._header = p, windows.cache.header
        self._shown = shown(p, windows)
        self._model, self._conversation, _ = opened(p, self._header, adapter.adapter_dir(p))
        self._first = self._model.active_adapter

    def __call__(self, batch: Batch) -> list[str]:
        with self._adapter(batch.row):
            windows = self._shown[batch.row]
            return generate_texts(
                self._model,
                self._conversation,
                np.stack([windows.frames(index) for index in batch.indices]),
                self._p.evaluation.max_new_tokens,
                histories=batch.histories,
                sampling=batch.sampling,
                constrained=self._p.evaluation.constrained,
            )

    def _adapter(self, row: str) -> contextlib.AbstractContextManager[Any]:
        """Select the adapter of a row; the base model's is disabled within the block."""
        if row == BASE_ROW:
            context: contextlib.AbstractContextManager[Any] = self._model.disable_adapter()
            return context
        self._model.set_adapter(self._blind() if row == BLIND_ROW else self._first)
        return contextlib.nullcontext()

    def _blind(self) -> str:
        folder = blind_adapter(self._p)
        if BLIND not in self._model.peft_config and folder is not None:
            blinded = self._p.blinded() or self._p
            load.add_second(self._model, folder, BLIND, blinded, self._header)
        return BLIND


class ModelServer:
    """Base model and adapters on a server; the windows of a batch are sent concurrently."""

    def __init__(self, p: Params, windows: Windows):
        self._p, self._shown, self._target = p, shown(p, windows), target_of(p)
        words = prompt_text(cameras.grid(p.vision.cameras), self._target)
        self._remote = RemoteAnswerer(p, str(p.evaluation.server), words, "evaluation.server")
        adapters = {ADAPTER: adapter.adapter_dir(p)}
        if BLIND_ROW in self._shown:
            adapters[BLIND_ADAPTER] = Path(blind_adapter(p) or "")
        self._names = {BASE_ROW: self._remote.base_of(adapters), BLIND_ROW: BLIND_ADAPTER}

    def __call__(self, batch: Batch) -> list[str]:
        windows, model = self._shown[batch.row], self._names.get(batch.row, ADAPTER)
        pattern = self._target.pattern if self._p.evaluation.constrained else None

        def ask(index: int, history: str) -> str:
            frames = windows.frames(index)
            return self._remote.ask_again(frames, history, model, batch.sampling, pattern)

        with ThreadPoolExecutor(len(batch.indices)) as pool:
            return list(pool.map(ask, batch.indices, batch.histories))


def _in_processes(
    p: Params, num_processes: int, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, list[str]]]:
    function = functools.partial(_on_a_card, p)
    with contextlib.closing(workers.run_jobs(function, batches, num_processes)) as answered:
        for batch, texts in answered:
            if texts is None:
                raise AvomniError(
                    f"the process that answered batch {batch.number} of the row {batch.row} died "
                    "twice",
                    where="evaluation.batch_size",
                    fix="run the stage again, it goes on from here; lower evaluation.batch_size "
                    "where memory is short",
                )
            yield batch, texts


_opened: dict[str, Any] = {}  # in a worker process: its model and the lock of its card


def _on_a_card(p: Params, batch: Batch) -> list[str]:
    """Answer a batch in a worker process, by a model on the worker's own card."""
    if not _opened:
        _opened["card"] = contextlib.ExitStack()
        _claim_card(p, _opened["card"])
        _opened["model"] = Local(p, answer.held_out_windows(p))
    texts: list[str] = _opened["model"](batch)
    return texts


def _claim_card(p: Params, stack: contextlib.ExitStack) -> None:
    """Lock the first card that no other worker of this run holds; without cards do nothing."""
    num_cards = hardware.num_cards()
    for card in range(num_cards):
        with contextlib.suppress(AvomniError):
            lock = p.run_dir / f".card_{card}.lock"
            stack.enter_context(files.hold(lock, "another process answers on this card"))
            os.environ[hardware.CARD] = str(card)
            return
    if num_cards:
        raise AvomniError(
            f"all {num_cards} cards are held by processes of this run",
            where=str(p.run_dir),
            fix="wait for the other evaluation, or stop it",
        )


class RemoteAnswerer:
    """Client of a server. Frames are sent as PNG, because JPEG changes the answers.

    Args:
        url: URL of the server, including `/v1`.
        words: The question, see `Conversation.words`.
        where: The parameter that names the server, for error messages.
        timeout_s: A request that takes longer is an error.
    """

    def __init__(
        self,
        p: Params,
        url: str,
        words: str,
        where: str = "live.server",
        timeout_s: float = TIMEOUT_S,
    ):
        self.p, self.url, self.words, self.timeout_s = p, url.rstrip("/"), words, timeout_s
        self._where = where

    def ask(
        self,
        frames: np.ndarray,
        history: str = "",
        model: str = ADAPTER,
        sampling: Sampling | None = None,
        pattern: str | None = None,
    ) -> str:
        """The model's answer to one window (T, H, W, 3) uint8 RGB.

        Args:
            history: Text of the car's past motion, appended to the question.
            sampling: How to sample the answer; None decodes greedily.

        Raises:
            AvomniError: the server does not answer in time, or its response is malformed.
        """
        asked = self.request(frames, history) | {"model": model}
        if sampling is not None:
            asked |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed % 2**31,
            }
        if pattern is not None:
            asked["structured_outputs"] = {"regex": pattern}
        answered = self._fetch("/chat/completions", asked)
        try:
            text = answered["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise self._error("does not answer as OpenAI's chat endpoint does")
        return text

    def ask_again(self, *asked: Any) -> str:
        """`ask` with retries while the server is slow, busy or unreachable.

        Raises:
            AvomniError: as `ask`, from the last attempt.
        """
        for wait_s in WAITS_S:
            try:
                return self.ask(*asked)
            except Unavailable as error:
                log.warning("%s; asked again in %g s", error.what, wait_s)
                time.sleep(wait_s)
        return self.ask(*asked)

    def base_of(self, adapters: Mapping[str, Path]) -> str:
        """The server's name of the base model of these adapters.

        Args:
            adapters: Name -> folder.

        Raises:
            AvomniError: an adapter or the base model is not served.
        """
        listed = self._fetch("/models")
        try:
            names = [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError):
            raise self._error("does not list its models as OpenAI's endpoint does") from None
        bases = [name for name in names if name not in (ADAPTER, BLIND_ADAPTER)]
        missing = [name for name in adapters if name not in names]
        if missing or not bases:
            modules = shlex.join(f"{name}={folder}" for name, folder in adapters.items())
            raise AvomniError(
                f"the server has {', '.join(names) or 'no model'}, and this evaluation asks "
                f"{', '.join(adapters)} and their base model",
                where=without_passwords(self.url),
                fix=f"start vLLM with the base model and --enable-lora --lora-modules {modules}, "
                f"or leave {self._where} out to answer here",
            )
        return self.p.model.base_model if self.p.model.base_model in bases else bases[0]

    def request(self, frames: np.ndarray, history: str = "") -> dict[str, Any]:
        """The request's body for one window, to the adapter with greedy decoding.

        Raises:
            AvomniError: the run's windows cannot be sent as one video.
        """
        kind = backbone(self.p.model.backbone)
        asked = kind.request(self.words + history, videos_of(self.p, kind))
        for part in asked["messages"][0]["content"]:
            if part["type"] == "video_url" and not self.p.processing.reach:
                pictures = ",".join(_png(frame) for frame in frames)
                part["video_url"] = {"url": f"data:video/jpeg;base64,{pictures}"}
                break
        else:
            raise AvomniError(
                "a server can be asked about one evenly spaced video a window, and this run shows "
                "more than that",
                where=self._where,
                fix=f"leave {self._where} out to answer in this process",
            )
        values = {"temperature": 0, "max_tokens": self.p.evaluation.max_new_tokens}
        return {"model": ADAPTER, **values, **asked}

    def _fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return json.loads(response.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            reason = error.read(500).decode(errors="replace").strip()
            kind = Unavailable if error.code >= 500 or error.code == 429 else AvomniError
            raise self._error(f"answers {error.code}: {reason}", kind) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise self._error(f"does not answer: {reason}", Unavailable) from None
        except ValueError:
            raise self._error("does not answer with JSON") from None

    def _error(self, what: str, kind: type[AvomniError] = AvomniError) -> AvomniError:
        return kind(
            f"the server {what}",
            where=without_passwords(self.url),
            fix="start it as the adapter's card says (README.md in its folder), or leave "
            f"{self._where} out to answer in this process",
        )


class Unavailable(AvomniError):
    """The server is slow, busy or unreachable; a retry may succeed."""


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
