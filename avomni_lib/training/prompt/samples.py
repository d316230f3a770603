"""The samples of a run: windows of the cache with their prompts, answers and tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select import protocol
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import FUTURE_S, Trajectory
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone
from avomni_lib.training.model import model_input
from avomni_lib.training.prompt import history, past, tokens
from avomni_lib.training.prompt.conversation import Conversation, Sample, padded, videos_of
from avomni_lib.training.targets import Target, target_of


def windows_of(p: Params, split: str | None, cache: Any = None, stride: int | None = None) -> Any:
    """The windows of a split of the run's cache for which the target is defined.

    Clips of `evaluation.protocol` are in no split.

    Args:
        split: None takes all clips, including the protocol's.
        cache: An open cache; None opens the run's.
        stride: Replaces `processing.stride`.

    Raises:
        AvomniError: there is no cache, it was built with other parameters, or it lacks the other
            road users that the target needs.
    """
    from avomni_lib.etl.cache.memmap import Cache
    from avomni_lib.etl.cache.windows import Windows

    asked, cache = target_of(p), cache or Cache.open(p.cache_dir)
    check_cache(p, cache)
    windows = Windows(
        cache,
        p.processing.sequence_length,
        p.processing.stride if stride is None else stride,
        split=split,
        horizon_s=asked.horizon_s,
        scenes=asked.scenes,
        past=past_of(p),
    )
    if split is None or not p.evaluation.protocol:
        return windows
    scored = set(protocol.clip_ids(p))
    return windows.only(i for i in range(len(windows)) if windows[i].clip_id not in scored)


def scored_windows(p: Params, cache: Any = None) -> Any:
    """The windows that are scored: those of `evaluation.split`, or one per clip of the protocol.

    The protocol's window is the one that ends nearest to its t0, at most half a sampling interval
    from it.

    Raises:
        AvomniError: as `windows_of`; the protocol's clips are unknown.
    """
    asked = protocol.protocol_of(p)
    if asked is None:
        return windows_of(p, p.evaluation.split, cache)
    ids = dict.fromkeys(protocol.clip_ids(p))
    windows = windows_of(p, None, cache, stride=1)
    nearest: dict[str, tuple[int, int]] = {}
    for index in range(len(windows)):
        clip_id = windows[index].clip_id
        if clip_id in ids:
            off_us = abs(int(windows.times_us(index)[-1]) - asked.t0_us)
            nearest[clip_id] = min(nearest.get(clip_id, (off_us, index)), (off_us, index))
    most_us = 0.5e6 / p.processing.sample_hz + 1
    return windows.only(
        nearest[clip_id][1]
        for clip_id in ids
        if clip_id in nearest and nearest[clip_id][0] <= most_us
    )


def past_of(p: Params) -> tuple[int, ...]:
    """Rows of the older frames in the run's windows (`past.offsets`)."""
    return past.offsets(p, tokens.backbone_of(p)) if p.processing.reach else ()


def check_cache(p: Params, cache: Any) -> None:
    """Refuse a cache that was built with other parameters.

    Raises:
        AvomniError: names every field of its header that differs.
    """
    from avomni_lib.etl.run.build import description

    wanted = model_input.flat(model_input.shown(description(p)))
    built = model_input.flat(model_input.shown(cache.header))
    lines = [
        f"{name}: built with {built.get(name)!r}, the parameters ask for {wanted.get(name)!r}"
        for name in dict.fromkeys([*wanted, *built])
        if wanted.get(name) != built.get(name)
    ]
    if lines:
        raise AvomniError(
            "the cache was built with other parameters:"
            + "".join(f"\n  - {line}" for line in lines),
            where=str(cache.folder),
            fix="run 03_etl again, or set the parameters back to what it was built with",
        )


def windows_ahead(p: Params) -> Any:
    """The windows of all splits that have a future of 6.4 s, whatever the target.

    Raises:
        AvomniError: no cache.
    """
    from avomni_lib.etl.cache.memmap import Cache
    from avomni_lib.etl.cache.windows import Windows

    length, stride = p.processing.sequence_length, p.processing.stride
    cache, older = Cache.open(p.cache_dir), past_of(p)
    return Windows(cache, length, stride, horizon_s=FUTURE_S, past=older)


def train_windows(p: Params) -> Any:
    """The training windows of the run's cache.

    Raises:
        AvomniError: no cache, or it holds no training window.
    """
    windows, length = windows_of(p, "train"), p.processing.sequence_length
    if not len(windows):
        short = f" and {target_of(p).horizon_s:g} s of ego motion after them"
        older = f" after {windows.reach} of the past" if windows.reach else ""
        raise AvomniError(
            f"no training window: no clip of the split `train` has {length} frames{older}"
            + (short if windows.num_short else ""),
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), raise processing.sample_hz, "
            "or lower processing.sequence_length",
        )
    return windows


def conversation_of(p: Params, tokenizer: Any, kind: Backbone) -> Conversation:
    """The conversation of a run, shared by training, evaluation and live answers."""
    return Conversation(
        tokenizer,
        kind,
        grid=cameras.grid(p.vision.cameras),
        target=target_of(p),
        videos=videos_of(p, kind),
        max_seq_length=p.model.max_seq_length,
        own_from_s=p.processing.own_from_s,
        ego_history=p.prompt.ego_history,
    )


def left_out(windows: Any) -> str:
    """The windows of the split that lack ground truth, as text; empty if there are none."""
    words = [
        (windows.num_short, "whose ego motion ends too early"),
        (windows.num_unknown, "without labels of other road users"),
    ]
    return "; ".join(f"{count:,} left out, {why}" for count, why in words if count)


def causes_from(windows: Any, asked: Target) -> dict[str, int]:
    """Numbers of causes by origin: `event` (people) or `template`; empty without causes."""
    if not asked.scenes:
        return {}
    sources = (asked.of(windows.truth(index)).cause_from for index in range(len(windows)))
    return dict(Counter(sources))


def sample_of(index: int, windows: Any, conversation: Conversation) -> Sample:
    """One window's prompt with the ground-truth answer."""
    answer = conversation.target.render(windows.truth(index))
    return conversation.sample(answer, history_of(index, windows, conversation))


def history_of(index: int, windows: Any, conversation: Conversation) -> str:
    """Text of the car's past motion for a window's prompt; empty unless `ego_history` is on."""
    if not conversation.ego_history:
        return ""
    return history.of_window(windows, index, conversation.target, conversation.own_from_s)


def past_words(p: Params, past: Callable[[int], Trajectory]) -> str:
    """Text of the car's past motion, by the run's parameters; empty unless `prompt.ego_history`.

    Args:
        past: Returns the motion before the window's first (0) or last (-1) frame.
    """
    if not p.prompt.ego_history:
        return ""
    asked = target_of(p)
    return history.text_of(past(history.FRAME[asked.history_ends]), asked, p.processing.own_from_s)


def longest(windows: Any, conversation: Conversation, looked_at: int = 64) -> Sample:
    """The (nearly) longest sample: of the slowest and the fastest window, and, if samples differ
    in more than digits, of `looked_at` windows that are evenly spaced by path length."""
    by_path = sorted(range(len(windows)), key=lambda index: windows.truth(index).path_m)
    chosen = {by_path[0], by_path[-1]}
    if conversation.ego_history or conversation.target.horizon_s:
        num = min(len(windows), looked_at)
        chosen |= {by_path[i * len(windows) // num] for i in range(num)}
    return max((sample_of(index, windows, conversation) for index in sorted(chosen)), key=len)


def batch_of(indices: Sequence[int], windows: Any, conversation: Conversation) -> dict[str, Any]:
    """A batch's tokens, labels and positions, one row per window."""
    made = [sample_of(index, windows, conversation) for index in indices]
    return padded(made, conversation.tokenizer.pad_token_id)
