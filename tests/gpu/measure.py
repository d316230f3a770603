"""A model at full size on one accelerator: speed, memory, data wait, adapter, answers.

    python -m tests.gpu.measure [--out FOLDER] [--place FOLDER] [--quick] [--seconds 500]
                                [--backbone qwen3_vl]

It is Qwen3-VL-8B, or of another backbone the size in `base.FULL`. It has its real config and random
weights, so nothing is downloaded: NF4, LoRA 64, 16 frames of 896×512 and of 1344×768 (for families
that see squares, a camera a square), two windows at a time, through the project's own worker,
loader and cache. Each part is guarded: what fails is written down with its reason and the rest goes
on; one for which too little time is left is left out. FOLDER/gpu.json is written anew after each
part.

--quick takes a tiny model and tiny grids, so that the script itself is tested on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import torch

from avomni_lib import files, hardware
from avomni_lib.params import sections
from avomni_lib.training.backbones import family
from tests.gpu.subject import QWEN3_VL, Subject
from tests.gpu.trainings import CASES, clear_memory, plain, run

REPORT_FILE = "gpu.json"
UNSLOTH = "4cam_unsloth"
UNSLOTH_SECONDS = 170.0  # it compiles the model's forward at the first step


@dataclass(frozen=True)
class Part:
    """One part of the measurement.

    Attributes:
        needs_s: It is left out where less time is left, s on an H100.
    """

    name: str
    run: Callable[[Subject], dict[str, Any]]
    needs_s: float


def parts() -> list[Part]:
    """What is measured, the most wanted first: the end may be cut off."""
    from tests.gpu import answers, base, card

    def training(name: str, needs_s: float) -> Part:
        return Part(name, lambda subject: run(_case(name, subject), subject), needs_s)

    return [
        Part("machine", card.describe, 0),
        Part("ceilings", card.ceilings, 5),
        Part("pixels", card.pixels, 5),
        Part("probes", probes, 10),
        Part("base_made", base.make, 30),
        Part("base_in_4_bit", base.put_into_4_bit, 30),
        training("4cam", 35),
        training("7cam", 45),
        Part("adapter", answers.reload, 30),
        Part("generation", answers.generate, 15),
        Part("timeline", timeline_of_steps, 25),
        training("4cam_stored_activations", 25),
        Part(UNSLOTH, unsloth, 80),
        training("4cam_accumulated", 45),
        training("4cam_bf16", 45),
        Part("doctor", doctor, 35),
    ]


def _case(name: str, subject: Subject) -> Any:
    return CASES[name].shortened() if subject.quick else CASES[name]


def timeline_of_steps(subject: Subject) -> dict[str, Any]:
    """Two steps under torch's profiler, of three that are taken."""
    if not torch.cuda.is_available():
        return {"left_out": "it shows the device's side, and there is none"}
    from tests.gpu import timeline
    from tests.gpu.trainings import train

    case, trace = CASES["4cam"], subject.folder / "trace.json"
    p = case.params(subject)
    p = p.model_copy(update={"training": p.training.model_copy(update={"max_steps": 3})})
    train(p, subject.windows(case.setup), timeline.Recorder(trace, p.training.max_steps))
    return timeline.summary(timeline.read(trace))


def probes(subject: Subject) -> dict[str, Any]:
    """What a training would ask of the machine before it starts, and a refusal of that overruled.

    The figures are wanted even where a bound is too tight for this card: the report says so.
    """
    from avomni_lib.training.doctor import probes as runs

    found: dict[str, Any] = {"findings": plain(runs.run(hardware.device().value))}
    if any(finding["state"] == "wrong" for finding in found["findings"]):
        subject.found["overruled"] = found["overruled"] = True
        overrule()
    return found


def overrule() -> None:
    """Let trainings start where a probe is wrong."""
    from avomni_lib.training.doctor import doctor as examiner

    examiner.check = lambda *_: []


def doctor(subject: Subject) -> dict[str, Any]:
    """The project's own examination of the machine, all of it."""
    from avomni_lib.training.doctor import doctor as examiner

    return {"examined": plain(examiner.examine())}


def unsloth(subject: Subject) -> dict[str, Any]:
    """The first training by Unsloth: in a process of its own, as it patches all that it finds."""
    if not family(subject.backbone).in_unsloth:
        return {"left_out": f"Unsloth has no path for {subject.backbone}"}
    if util.find_spec("unsloth") is None or not torch.cuda.is_available():
        return {"left_out": "unsloth is not installed, or there is no accelerator"}
    out = subject.folder / "unsloth.json"
    command = [sys.executable, "-m", "tests.gpu.measure", "--case", UNSLOTH]
    command += ["--place", str(subject.folder), "--out", str(out)]
    command += ["--backbone", subject.backbone] + (["--quick"] if subject.quick else [])
    names = ("datasheet", "measured_product", "overruled")
    known = {name: subject.found.get(name) for name in names}
    environment = os.environ | {
        "UNSLOTH_DISABLE_STATISTICS": "1",  # it would ask the network
        "UNSLOTH_COMPILE_LOCATION": str(subject.folder / "unsloth_compiled_cache"),
        "AVOMNI_GPU_FOUND": json.dumps(known),
    }
    limit = min(UNSLOTH_SECONDS, subject.found["deadline"] - time.monotonic() - 5)
    clear_memory()
    try:
        ran = subprocess.run(
            command,
            env=environment,
            cwd=files.PROJECT_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        return {"error": f"not done after {limit:.0f} s", "said": said[-3000:]}
    if ran.returncode or not out.exists():
        return {"error": f"it ended with {ran.returncode}", "said": ran.stdout[-4000:]}
    return json.loads(out.read_text())


def hash_once() -> None:
    """Hash each base model once: seven gigabytes for each training would take a minute in all."""
    from avomni_lib.training.model import load

    whole, known = load.base_digest, {}

    def digest(location: str, config: Any) -> str:
        if location not in known:
            known[location] = whole(location, config)
        return known[location]

    load.base_digest = digest


def one_case(name: str, subject: Subject, out: Path) -> None:
    """A training alone, for a process of its own."""
    subject.found |= json.loads(os.environ.get("AVOMNI_GPU_FOUND", "{}"))
    if subject.found.get("overruled"):
        overrule()
    files.write_json(out, plain(run(_case(name, subject), subject)))


def measure(subject: Subject, chosen: Sequence[Part], out: Path, seconds: float) -> dict[str, Any]:
    """Run the parts and write the report after each."""
    started = time.monotonic()
    subject.found["deadline"] = started + seconds
    about = {"quick": subject.quick, "backbone": subject.backbone}
    report: dict[str, Any] = {**about, "parts": {}}
    for part in chosen:
        begun = time.monotonic()
        left = subject.found["deadline"] - begun
        if left < part.needs_s and not subject.quick:
            found: dict[str, Any] = {"left_out": f"{left:.0f} s were left of {seconds:.0f}"}
        else:
            try:
                found = plain(part.run(subject))
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:2000]}
                found["where"] = traceback.format_exc()[-3000:]
            clear_memory()
        found["part_seconds"] = round(time.monotonic() - begun, 1)
        report["parts"][part.name] = found
        report["seconds"] = round(time.monotonic() - started, 1)
        files.write_json(out / REPORT_FILE, report)
        print(f"{report['seconds']:7.1f} s  {part.name}: {json.dumps(found)}", flush=True)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure")
    parser.add_argument("--out", type=Path, default=files.PROJECT_ROOT / "outputs" / "gpu")
    parser.add_argument("--place", type=Path, help="room for 27 GB; a temporary folder if left out")
    parser.add_argument("--quick", action="store_true", help="a tiny model, for a CPU")
    parser.add_argument("--seconds", type=float, default=500.0, help="in all")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, and what they need")
    parser.add_argument("--backbone", choices=sections.BACKBONES, default=QWEN3_VL)
    parser.add_argument("--case", choices=CASES, help="this training alone, its figures into OUT")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="avomni-gpu-") as temporary:
        subject = Subject(options.place or Path(temporary), options.quick, options.backbone)
        if options.case:
            one_case(options.case, subject, options.out)
            return 0
        hash_once()
        chosen = [p for p in parts() if not options.only or p.name in options.only]
        report = measure(subject, chosen, options.out, options.seconds)
    failed = [name for name, found in report["parts"].items() if "error" in found]
    print(f"{len(report['parts']) - len(failed)} of {len(report['parts'])} parts; failed: {failed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
