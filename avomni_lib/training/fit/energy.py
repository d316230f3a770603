"""What the cards of a training do and draw while it runs: busy share, watts, °C, joules.

The card makers' own programs are asked now and then from a thread: `amd-smi`, `rocm-smi` or
`nvidia-smi`, the first on PATH that names a card. One that fails, hangs or prints something else
is given up with a warning; no training ends for it. Forms of the answers: ROCm's documentation
and outputs in public issues of 2024 to 2026 (henrygd/beszel 414 and 737, ROCm/rocm_smi_lib 149),
and `nvidia-smi --help-query-gpu`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

EVERY_S = 2.0  # and so seldom that asking takes a twentieth of a core at most
TIMEOUT_S, LONGEST_WAIT_S = 10.0, 60.0
FAILURES = 3  # in a row, before a program is given up
JOULES_PER_KWH = 3.6e6
# A process sees the cards that these name, and counts them from 0.
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
# Keys of a line of `metrics.jsonl`, where a card could be asked.
BUSY, WATTS, CELSIUS, JOULES = "gpu_busy_pct", "gpu_watts", "gpu_celsius", "gpu_joules"


@dataclass(frozen=True)
class Reading:
    """One card at one moment; what its program does not tell is None.

    Attributes:
        busy: Share of the last moments in which a kernel ran, %.
        watts: Of the whole board or socket.
        celsius: Of the hottest place that is measured.
    """

    busy: float | None
    watts: float | None
    celsius: float | None


Readings = dict[str, Reading]  # by the card's number, or its UUID


def _amd(text: str) -> Readings:
    found = json.loads(text)
    cards = found["gpu_data"] if isinstance(found, dict) else found
    readings = {}
    for card in cards:
        # `"usage": "N/A"` in place of a table where nothing of it is known.
        usage, power, heat = (
            part if isinstance(part := card.get(name), dict) else {}
            for name in ("usage", "power", "temperature")
        )
        readings[str(card["gpu"])] = Reading(
            _number(usage.get("gfx_activity")),
            _number(power.get("socket_power", power.get("current_socket_power"))),
            _hottest(heat.get(place) for place in ("edge", "hotspot", "mem")),
        )
    return readings


def _rocm(text: str) -> Readings:
    readings = {}
    for name, card in json.loads(text).items():
        if not name.startswith("card"):
            continue  # `system`
        power = [value for key, value in card.items() if key.endswith("Package Power (W)")]
        readings[name.removeprefix("card")] = Reading(
            _number(card.get("GPU use (%)")),
            _hottest(power),
            _hottest(value for key, value in card.items() if key.startswith("Temperature")),
        )
    return readings


def _nvidia(text: str) -> Readings:
    readings = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        index, uuid, busy, watts, celsius = (cell.strip() for cell in line.split(","))
        readings[index] = readings[uuid] = Reading(*map(_number, (busy, watts, celsius)))
    return readings


def _number(value: Any) -> float | None:
    """A figure as the programs write it, bare, as text or with its unit; None for N/A."""
    if isinstance(value, dict):
        value = value.get("value")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _hottest(values: Any) -> float | None:
    return max((n for n in map(_number, values) if n is not None), default=None)


PROGRAMS: dict[str, tuple[Sequence[str], Callable[[str], Readings]]] = {
    "amd-smi": (("metric", "--usage", "--power", "--temperature", "--json"), _amd),
    "rocm-smi": (("--showuse", "--showpower", "--showtemp", "--json"), _rocm),
    "nvidia-smi": (
        (
            "--query-gpu=index,uuid,utilization.gpu,power.draw,temperature.gpu",
            "--format=csv,noheader,nounits",
        ),
        _nvidia,
    ),
}


def ask(program: str) -> Readings:
    """What a program says of all cards now.

    Raises:
        OSError, subprocess.SubprocessError: it did not run to its end.
        ValueError, LookupError, TypeError, AttributeError: it said something else.
    """
    words, read = PROGRAMS[program]
    with subprocess.Popen(
        [program, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it has started ends with it
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, program)
    return read(output)


UNREADABLE = (
    *(OSError, subprocess.SubprocessError),
    *(ValueError, LookupError, TypeError, AttributeError),
)


def cards_of(device: str, num_processes: int = 1) -> list[str]:
    """The machine's own numbers, or UUIDs, of the cards that a training drives.

    Args:
        device: As `hardware.device` says, `cuda:0`; of the first process.
        num_processes: Of this machine, each with a card of its own.
    """
    first = int(device.partition(":")[2] or 0)
    wanted = range(first, first + 1) if num_processes == 1 else range(num_processes)
    given = next((os.environ[name] for name in VISIBLE if os.environ.get(name)), None)
    if given is None:
        return [str(number) for number in wanted]
    names = [name.strip() for name in given.split(",")]
    return [names[number] for number in wanted if number < len(names)]


class Sampler:
    """Asks a program about some cards until it is closed; what it found is taken line by line.

    Args:
        cards: As `cards_of` names them; their watts are added, their busy shares averaged.
        every: Seconds between two questions at least.
    """

    def __init__(self, cards: Sequence[str], every: float = EVERY_S):
        self.cards, self.every = cards, every
        self._found: list[Reading] = []
        self._last: Reading | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, device: str, num_processes: int = 1) -> Sampler | None:
        """For a training on this device; None on a CPU."""
        return None if device == "cpu" else cls(cards_of(device, num_processes))

    def close(self) -> None:
        """Asks no more. A question that is under way is not waited for."""
        self._closed.set()

    def taken(self, seconds: float) -> dict[str, float]:
        """Means since the last call, by the keys of a line of metrics, and joules of `seconds`.

        A line that is shorter than the time between two questions takes the last answer; before
        the first answer, and of what is not known, nothing.
        """
        with self._lock:
            found, self._found = self._found or [r for r in [self._last] if r], []
        line = {}
        for key, name in ((BUSY, "busy"), (WATTS, "watts"), (CELSIUS, "celsius")):
            values = [v for each in found if (v := getattr(each, name)) is not None]
            if values:
                line[key] = round(statistics.fmean(values), 1)
        if WATTS in line:
            line[JOULES] = round(line[WATTS] * seconds, 1)
        return line

    def _run(self) -> None:
        for program in PROGRAMS:
            if shutil.which(program):
                self._follow(program)

    def _follow(self, program: str) -> None:
        """Asks a program until it fails too often, or the sampler is closed."""
        failed = 0
        while not self._closed.is_set() and failed < FAILURES:
            began = time.monotonic()
            try:
                reading = self._of_ours(ask(program))
            except UNREADABLE as error:
                failed += 1
                if failed == FAILURES:
                    log.warning("%s tells nothing of the cards: %s", program, _first_line(error))
            else:
                failed = 0
                with self._lock:
                    self._found.append(reading)
                    self._last = reading
            took = time.monotonic() - began
            self._closed.wait(max(self.every, min(20 * took, LONGEST_WAIT_S)))

    def _of_ours(self, readings: Readings) -> Reading:
        ours = [readings[name] for name in self.cards]

        def joined(name: str, how: Callable[[list[float]], float]) -> float | None:
            values = [getattr(each, name) for each in ours]
            return None if None in values or not values else how(values)

        reading = Reading(
            joined("busy", statistics.fmean), joined("watts", sum), joined("celsius", max)
        )
        if reading == Reading(None, None, None):
            raise ValueError(f"it knows neither load nor power nor temperature of {self.cards}")
        return reading


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of a whole training, as `result.json` has them; empty where no card was asked.

    Args:
        metrics: Its lines; those of steps before a card could be asked count as the mean of the
            others.
    """
    seconds = sum(line["seconds"] for line in metrics)
    found = {}
    for key in (BUSY, WATTS, CELSIUS):
        known = [line for line in metrics if key in line]
        if known and (of := sum(line["seconds"] for line in known)):
            mean = sum(line["seconds"] * line[key] for line in known) / of
            found[key] = round(mean, 1)
    if WATTS in found:
        joules = found[WATTS] * seconds
        num_samples = sum(line["samples_per_s"] * line["seconds"] for line in metrics)
        found["energy_kwh"] = round(joules / JOULES_PER_KWH, 5)
        found["joules_per_sample"] = round(joules / max(num_samples, 1e-9), 1)
    return found
