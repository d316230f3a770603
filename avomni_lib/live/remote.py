"""Answers of a server with OpenAI's chat endpoint, as vLLM serves the base model and an adapter."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from PIL import Image

from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from avomni_lib.training.export.card import SERVED_NAME
from avomni_lib.training.prompt.conversation import videos_of

TIMEOUT_S = 60.0


class RemoteAnswerer:
    """Asks a server about windows, frame by frame as PNG: JPEG changes answers.

    Args:
        p: The run's.
        url: Of the server, up to and with `/v1`.
        words: The question, as `Conversation.words`.
        timeout_s: An answer that takes longer is an error.
    """

    def __init__(self, p: Params, url: str, words: str, timeout_s: float = TIMEOUT_S):
        self.p, self.url, self.words, self.timeout_s = p, url.rstrip("/"), words, timeout_s

    def ask(self, frames: np.ndarray, history: str = "") -> str:
        """The answer's text about one window (T, H, W, 3) uint8 RGB.

        Raises:
            AvomniError: the server does not answer, in time or at all, or answers something else.
        """
        body = json.dumps(self.request(frames, history)).encode()
        request = urllib.request.Request(
            f"{self.url}/chat/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            reason = error.read(500).decode(errors="replace").strip()
            raise self._error(f"answers {error.code}: {reason}") from None
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise self._error(f"does not answer: {reason}") from None
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._error("does not answer as OpenAI's chat endpoint does") from None

    def request(self, frames: np.ndarray, history: str = "") -> dict[str, Any]:
        """What is sent about one window.

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
                where="live.server",
                fix="leave live.server out to answer in this process",
            )
        values = {"temperature": 0, "max_tokens": self.p.evaluation.max_new_tokens}
        return {"model": SERVED_NAME, **values, **asked}

    def _error(self, what: str) -> AvomniError:
        return AvomniError(
            f"the server {what}",
            where=without_passwords(self.url),
            fix="start it as the adapter's card says (README.md in its folder), or leave "
            "live.server out to answer in this process",
        )


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
