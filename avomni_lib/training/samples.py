"""The samples of a training: the cache's windows, and the words and tokens about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avomni_lib.dataset import rig
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone
from avomni_lib.training.conversation import Conversation, Sample
from avomni_lib.training.targets import target


def train_windows(p: Params) -> Any:
    """The training windows of the run's cache.

    Raises:
        AvomniError: no cache, or it holds no training window.
    """
    from avomni_lib.etl.memmap import Cache
    from avomni_lib.etl.windows import Windows

    cache = Cache.open(p.cache_dir)
    length, stride = p.processing.sequence_length, p.processing.stride
    windows = Windows(cache, length, stride, split="train")
    if not len(windows):
        raise AvomniError(
            f"no training window: no clip of the split `train` has {length} frames",
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), raise processing.sample_hz, "
            "or lower processing.sequence_length",
        )
    return windows


def conversation_of(p: Params, windows: Any, tokenizer: Any, kind: Backbone) -> Conversation:
    """The conversation that training, evaluation and live answers hold about these windows."""
    num_frames, height, width, _ = windows.frame_shape
    return Conversation(
        tokenizer,
        kind,
        grid=rig.grid(p.vision.camera_setup),
        target=target(p.training.target),
        num_frames=num_frames,
        height=height,
        width=width,
        sample_hz=p.processing.sample_hz,
        max_seq_length=p.model.max_seq_length,
    )


def sample_of(index: int, windows: Any, talk: Conversation) -> Sample:
    """One window's question and true answer."""
    return talk.sample(talk.target.render(windows.truth(index)))


def longest(windows: Any, talk: Conversation) -> Sample:
    """The longer sample of the slowest and the fastest window: answers differ by their digits."""
    by_path = sorted(range(len(windows)), key=lambda index: windows.truth(index).path_m)
    ends = [sample_of(index, windows, talk) for index in (by_path[0], by_path[-1])]
    return max(ends, key=len)


def batch_of(
    indices: Sequence[int], windows: Any, talk: Conversation, packing: bool = False
) -> dict[str, Any]:
    """A batch's tokens, labels and positions, in a row a window or packed in one."""
    from avomni_lib.training import packing as rows

    samples = [sample_of(index, windows, talk) for index in indices]
    return rows.packed(samples) if packing else rows.padded(samples, talk.tokenizer.pad_token_id)


def check_packing(p: Params, longest: int) -> int:
    """Windows of this length, in tokens, that one packed row has room for.

    Raises:
        AvomniError: fewer than a batch has.
    """
    room = p.model.max_seq_length // longest
    if p.training.packing and p.training.batch_size > room:
        raise AvomniError(
            f"a packed row of {p.training.batch_size} windows is "
            f"{p.training.batch_size * longest:,} tokens, model.max_seq_length is "
            f"{p.model.max_seq_length:,}",
            where="training.packing",
            fix=f"set training.batch_size to {room} at most, or raise model.max_seq_length",
        )
    return room
