"""What a choice of tiling costs, by the arithmetic that plans the whole run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from avomni_lib import files
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import engines, forecast
from avomni_lib.etl.run.forecast import Video
from avomni_lib.etl.video import reader as video
from avomni_lib.notebook.tiles.choice import Choice
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes
from avomni_lib.training.fit import job
from avomni_lib.training.forecast import estimate
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.model.load import TINY
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.tokens import Tokens

REFUSED = "05_train would refuse it"


@dataclass(frozen=True)
class Footage:
    """The clips that the run is made of.

    Attributes:
        num_clips: All splits.
        seconds: Of one clip.
        video: One camera's.
    """

    num_clips: int
    seconds: float
    video: Video

    @classmethod
    def of(cls, p: Params, num_clips: int, clip: Clip | None) -> Footage:
        """As one raw clip is, or as published where there is none."""
        return cls(num_clips, forecast.clip_seconds(p, clip), forecast.clip_video(p, clip))


def cost(p: Params, choice: Choice, footage: Footage) -> Plan:
    """Tokens, MB a sample, GB and minutes of the ETL, and seconds a step, of a choice.

    Figures: `vision_tokens`, `tokens`, `sample_mb`, `cache_gb`, `etl_seconds` and `step_seconds`;
    the tokens and the last are left out where they are not known.
    """
    laid = choice.laid_over(p)
    height, width = choice.size
    length, limit = choice.sequence_length, p.model.max_seq_length
    cache_bytes, cpu_seconds = _etl(laid, choice, footage)
    workers, _ = engines.num_workers(p)
    figures = {
        "cache_gb": cache_bytes / 1e9,
        "etl_seconds": cpu_seconds / workers,
    }
    warnings = []
    told, older = None, 0
    try:
        older = len(samples.past_of(laid))
        told = estimate.tokens_per_sample(laid)
    except AvomniError as error:
        warnings.append(f"{REFUSED}: {error.what}")
        rows = [("vision tokens", "none", "the grid does not divide into the model's squares")]
    else:
        fits = told.total <= limit
        share = f"{100 * told.total / limit:.0f} %"
        note = f"with the text about {told.total:,} of {limit:,} ({share})"
        rows = [("vision tokens", f"{told.vision:,}", note)]
        figures |= {"vision_tokens": told.vision, "tokens": told.total}
        if not fits:
            warnings.append(
                f"too long: {REFUSED}; about {told.total:,} tokens a sample, "
                f"model.max_seq_length is {limit:,}"
            )
    figures["sample_mb"] = sample_mb = (older + length) * height * width * 3 / 1e6
    seconds = (length - 1) / choice.sample_hz
    rows += [
        ("a sample", f"{sample_mb:.1f} MB", f"{length} frames in {seconds:g} s"),
        *(estimate.past_rows(laid) if older else []),
        (
            "cache",
            gigabytes(cache_bytes),
            f"clips: {footage.num_clips:,}, as {p.processing.storage}",
        ),
        ("ETL", minutes(cpu_seconds / workers), f"estimated, {workers} workers"),
        _step(p, laid, told, figures),
    ]
    return Plan(f"{choice}, {choice.sample_hz:g} Hz", rows, warnings, figures)


def in_short(told: Plan) -> str:
    """The cost in a line, for the title of a picture."""
    if "tokens" not in told.figures:
        return f"{told.title}: {told.warnings[0]}"
    note = next((f" ({w.partition(':')[0]}: {REFUSED})" for w in told.warnings if "long" in w), "")
    size = f"{told.figures['sample_mb']:.1f} MB a sample".replace(" ", "\N{NO-BREAK SPACE}")
    tokens_told = f"{told.figures['vision_tokens']:,} vision tokens a window"
    return f"{told.title}: {tokens_told}, {told.rows[0][2]}{note}, {size}"


def _etl(laid: Params, choice: Choice, footage: Footage) -> tuple[float, float]:
    """(bytes of the cache, CPU seconds to make it), as `forecast.storages` tells for a setup."""
    storage, clips = laid.processing.storage, footage.num_clips
    decoder = video.choose_decoder(laid.processing.decoder)[0]
    decode_s = footage.video.cpu_s(choice.sample_hz, decoder) * len(choice.grid.cameras)
    pixels = forecast.clip_bytes(laid, footage.seconds, "raw")
    cpu_s = decode_s + pixels * forecast.STORE_S[storage]
    return clips * forecast.clip_bytes(laid, footage.seconds, storage), clips * cpu_s


def _step(
    p: Params, laid: Params, told: Tokens | None, figures: dict[str, float]
) -> tuple[str, str, str]:
    """The row of an optimizer step: as 05 timed it here, else by arithmetic on the known card."""
    label, size = "a step", size_of(p)
    if told is None or size is None:
        return label, "not known", "no tokens to count" if told is None else "of no known size"
    each = estimate.expected_seconds(laid, size, told)
    timed = _timed(p)
    if timed is not None:
        own = estimate.expected_seconds(p, size, estimate.tokens_per_sample(p))
        each *= timed / own
        known = "from the steps that 05_train timed here"
    elif p.model.base_model == TINY:
        return label, "not known", "05_train times some; the tiny base runs on the CPU"
    else:
        known = f"estimated on an {estimate.CARD}, not measured"
    figures["step_seconds"] = each
    return label, f"{each:.3g} s", f"{estimate.windows_per_step(p)} windows; {known}"


def _timed(p: Params) -> float | None:
    """Seconds a step that 05_train timed on this machine for the run as it is, if it did."""
    with contextlib.suppress(AvomniError, KeyError, TypeError):
        then = files.read_json(p.checkpoints_dir / job.PARAMS_FILE)
        same = ("processing", "vision", "model", "training")
        if {name: then[name] for name in same} == p.values(*same):
            took = files.read_json(p.checkpoints_dir / job.PROBE_FILE)["value"]
            return float(took["seconds_per_step"])
    return None
