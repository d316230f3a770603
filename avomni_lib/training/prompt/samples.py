"""The samples of a training: the cache's windows, and the words and tokens about them."""

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
    """The windows of a split of the run's cache that the run's target can be told of.

    Those of the clips of `evaluation.protocol` are in no split.

    Args:
        split: None takes all clips, the protocol's too.
        cache: An open one; the run's if None.
        stride: In place of `processing.stride`.

    Raises:
        AvomniError: no cache, one that was built with other parameters, or one without the other
            road users that the target speaks of.
    """
    from avomni_lib.etl.cache.memmap import Cache
    from avomni_lib.etl.cache.windows import Windows

    asked, cache = target_of(p), cache or Cache.open(p.cache_dir)
    check_cache(p, cache)
    found = Windows(
        cache,
        p.processing.sequence_length,
        p.processing.stride if stride is None else stride,
        split=split,
        horizon_s=asked.horizon_s,
        scenes=asked.scenes,
        past=past_of(p),
    )
    if split is None or not p.evaluation.protocol:
        return found
    scored = set(protocol.clip_ids(p))
    return found.only(i for i in range(len(found)) if found[i].clip_id not in scored)


def scored_windows(p: Params, cache: Any = None) -> Any:
    """The windows that a score is made on: of `evaluation.split`, or one a clip of the protocol's.

    The protocol's ends nearest to its moment, half a sampling step off at most.

    Raises:
        AvomniError: as `windows_of`; the protocol's clips cannot be told.
    """
    asked = protocol.protocol_of(p)
    if asked is None:
        return windows_of(p, p.evaluation.split, cache)
    ids = dict.fromkeys(protocol.clip_ids(p))
    found = windows_of(p, None, cache, stride=1)
    nearest: dict[str, tuple[int, int]] = {}
    for index in range(len(found)):
        clip_id = found[index].clip_id
        if clip_id in ids:
            off = abs(int(found.times_us(index)[-1]) - asked.t0_us)
            nearest[clip_id] = min(nearest.get(clip_id, (off, index)), (off, index))
    most_us = 0.5e6 / p.processing.sample_hz + 1
    return found.only(
        nearest[clip_id][1]
        for clip_id in ids
        if clip_id in nearest and nearest[clip_id][0] <= most_us
    )


def past_of(p: Params) -> tuple[int, ...]:
    """Rows of the older frames that the run's windows show before their own (`past.offsets`)."""
    return past.offsets(p, tokens.backbone_of(p)) if p.processing.reach else ()


def check_cache(p: Params, cache: Any) -> None:
    """Refuse a cache whose frames are others than the parameters ask for.

    Raises:
        AvomniError: every field of its header that differs.
    """
    from avomni_lib.etl.run.build import description

    wanted = model_input.flat(model_input.shown(description(p)))
    there = model_input.flat(model_input.shown(cache.header))
    lines = [
        f"{name}: built with {there.get(name)!r}, the parameters ask for {wanted.get(name)!r}"
        for name in dict.fromkeys([*wanted, *there])
        if wanted.get(name) != there.get(name)
    ]
    if lines:
        raise AvomniError(
            "the cache was built with other parameters:"
            + "".join(f"\n  - {line}" for line in lines),
            where=str(cache.folder),
            fix="run 03_etl again, or set the parameters back to what it was built with",
        )


def windows_ahead(p: Params) -> Any:
    """The windows of all splits whose next 6.4 s the cache knows, whatever the target is.

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
    """The conversation that training, evaluation and live answers hold about the run's windows."""
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
    """Which windows of the split cannot be told of, in words; nothing where none are."""
    words = [
        (windows.num_short, "whose ego motion ends too early"),
        (windows.num_unknown, "around which nobody labelled other road users"),
    ]
    return "; ".join(f"{count:,} left out, {why}" for count, why in words if count)


def causes_from(windows: Any, asked: Target) -> dict[str, int]:
    """Who wrote the causes that are learned: `event` people did, `template` this program.

    Empty for a target that tells no cause.
    """
    if not asked.scenes:
        return {}
    sources = (asked.of(windows.truth(index)).cause_from for index in range(len(windows)))
    return dict(Counter(sources))


def sample_of(index: int, windows: Any, talk: Conversation) -> Sample:
    """One window's question and true answer."""
    answer = talk.target.render(windows.truth(index))
    return talk.sample(answer, history_of(index, windows, talk))


def history_of(index: int, windows: Any, talk: Conversation) -> str:
    """What the prompt of a window tells of the car's past motion; nothing unless it is asked to."""
    if not talk.ego_history:
        return ""
    return history.of_window(windows, index, talk.target, talk.own_from_s)


def past_words(p: Params, past: Callable[[int], Trajectory]) -> str:
    """The same by the run's parameters.

    Args:
        past: The motion before the window's frame of this number, 0 or -1.
    """
    if not p.prompt.ego_history:
        return ""
    asked = target_of(p)
    return history.text_of(past(history.FRAME[asked.history_ends]), asked, p.processing.own_from_s)


def longest(windows: Any, talk: Conversation, looked_at: int = 64) -> Sample:
    """The longest sample, or nearly: of the slowest and the fastest window, whose digits differ
    most, and, where more than digits differ, of some more that are evenly spaced over the rest."""
    by_path = sorted(range(len(windows)), key=lambda index: windows.truth(index).path_m)
    chosen = {by_path[0], by_path[-1]}
    if talk.ego_history or talk.target.horizon_s:
        num = min(len(windows), looked_at)
        chosen |= {by_path[i * len(windows) // num] for i in range(num)}
    return max((sample_of(index, windows, talk) for index in sorted(chosen)), key=len)


def batch_of(indices: Sequence[int], windows: Any, talk: Conversation) -> dict[str, Any]:
    """A batch's tokens, labels and positions, a row a window."""
    made = [sample_of(index, windows, talk) for index in indices]
    return padded(made, talk.tokenizer.pad_token_id)
