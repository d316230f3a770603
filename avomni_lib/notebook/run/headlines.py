"""What came out of each stage, on one line."""

from __future__ import annotations

from avomni_lib.plan import gigabytes


def in_short(stage: str, figures: dict) -> str:
    """What came out of a stage, on one line."""
    if not figures:
        return ""
    try:
        return HEADLINES[stage](figures)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "its figures are damaged"


def _score(figures: dict) -> str:
    rows = {row["name"]: row for row in figures["ladder"]}
    own = rows["adapted"]
    spread = "" if own["low"] is None else f" ({own['low']:.2f} to {own['high']:.2f})"
    others = ", ".join(
        f"{name} {rows[name]['value']:.2f}"
        for name in ("mean", "base", "ego_motion")
        if name in rows
    )
    return (
        f"{own['metric']} {own['value']:.2f}{spread}; {others}; {own['valid_share']:.0%} of "
        f"answers can be read ({own['num_windows']} windows, {own['num_clips']} clips)"
    )


HEADLINES = {
    "01_audit": lambda f: f"{f['num_clips']} clips in {f['num_files']} files, {_states(f)}",
    "02_download": lambda f: (
        f"{gigabytes(f['bytes'])}, {gigabytes(f['bytes_fetched'])} fetched{_by_03(f)}"
    ),
    "03_etl": lambda f: (
        f"{f['num_clips']} clips, {f['num_damaged']} left out, {_lost(f)}{f['num_windows']} "
        f"windows, {gigabytes(f['cache_bytes'])}"
    ),
    "04_tiles": lambda f: f"{f['vision_tokens']} vision tokens, {f['tokens_per_sample']} in all",
    "05_train": lambda f: f["headline"],
    "06_evaluate": _score,
}


def _by_03(figures: dict) -> str:
    num_bytes = figures.get("bytes_to_fetch", 0)
    return f", {gigabytes(num_bytes)} to be fetched by 03" if num_bytes else ""


def _lost(figures: dict) -> str:
    num = figures.get("num_lost", 0)
    return f"{num} lost (run the same command again: it tries them again), " if num else ""


def _states(figures: dict) -> str:
    words = {"missing": "not on the disk yet"}
    states = {state: n for state, n in figures["clips_by_state"].items() if n}
    return ", ".join(f"{n} {words.get(state, state)}" for state, n in states.items())
