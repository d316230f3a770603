"""Answers of a server with OpenAI's chat endpoint, as vLLM serves the base model and adapters."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from avomni_lib.training.export.card import SERVED_NAME
from avomni_lib.training.model.generate import Sampling
from avomni_lib.training.prompt.conversation import videos_of

log = logging.getLogger(__name__)
TIMEOUT_S, LIVE_TIMEOUT_S = 120.0, 15.0
WAITS_S = (1.0, 4.0, 16.0)  # before an answer is asked for again
ADAPTER, BLIND_ADAPTER = SERVED_NAME, f"{SERVED_NAME}-blind"  # as vLLM's --lora-modules names them
MOST_BYTES = 1_000_000  # of an answer


class RemoteAnswerer:
    """Asks a server about windows, frame by frame as PNG: JPEG changes answers.

    Args:
        p: The run's.
        url: Of the server, up to and with `/v1`.
        words: The question, as `Conversation.words`.
        where: The parameter that names the server.
        timeout_s: An answer that takes longer is an error.
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
        """The answer's text about one window (T, H, W, 3) uint8 RGB.

        Args:
            model: The name that the server knows it by.
            sampling: Draw the answer; None takes the likeliest tokens.
            pattern: A regular expression that the answer has to match.

        Raises:
            AvomniError: the server does not answer, in time or at all, or answers something else.
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
        """`ask`, and again after a while where the server is slow, busy or away for a moment.

        Raises:
            AvomniError: as `ask`, of the last time.
        """
        for wait_s in WAITS_S:
            try:
                return self.ask(*asked)
            except Unavailable as error:
                log.warning("%s; asked again in %g s", error.what, wait_s)
                time.sleep(wait_s)
        return self.ask(*asked)

    def base_of(self, adapters: Mapping[str, Path]) -> str:
        """The name of the base model that is served beside these adapters.

        Args:
            adapters: Name -> folder.

        Raises:
            AvomniError: one of them is not served, or no base model is.
        """
        listed = self._fetch("/models")
        try:
            names = [str(each["id"]) for each in listed["data"]]
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
        """What is sent about one window, to the adapter and for its likeliest tokens.

        Raises:
            AvomniError: a server is not shown such a window as one video.
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
    """The server is slow, busy or away: it may answer when it is asked again."""


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
