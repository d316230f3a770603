"""Samples load, power and temperature of a training's cards: busy share, watts, °C, joules.

A thread runs the vendors' programs periodically: `amd-smi`, `rocm-smi` or `nvidia-smi`, the first
on PATH that reports the cards. A program that fails, hangs or prints unexpected output is dropped
with a warning, without ending the training. Sources of the output formats: ROCm's documentation,
outputs in public issues of 2024 to 2026 (henrygd/beszel 414 and 737, ROCm/rocm_smi_lib 149), and
`nvidia-smi --help-query-gpu`.
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

EVERY_S = 2.0  # least interval; it grows so that sampling takes at most 5 % of a core
TIMEOUT_S, LONGEST_WAIT_S = 10.0, 60.0
FAILURES = 3  # consecutive failures after which a program is dropped
JOULES_PER_KWH = 3.6e6
# Variables that select the cards that a process sees, numbered from 0.
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
# Keys of a line of `metrics.jsonl`, if a card was sampled.
BUSY, WATTS, CELSIUS, JOULES = "gpu_busy_pct", "gpu_watts", "gpu_celsius", "gpu_joules"


@dataclass(frozen=True)
class PowerSample:
    """One sample of a card; values that are not reported are None.

    Attributes:
        busy: Share of the recent time in which a kernel ran, %.
        watts: Power of the whole board or socket.
        celsius: Temperature of the hottest sensor.
    """

    busy: float | None
    watts: float | None
    celsius: float | None


Readings = dict[str, PowerSample]  # by the card's number, or its UUID


def _amd(text: str) -> Readings:
    output = json.loads(text)
    cards = output["gpu_data"] if isinstance(output, dict) else output
    readings = {}
    for card in cards:
        # A table may be replaced by "N/A".
        usage, power, heat = (
            part if isinstance(part := card.get(name), dict) else {}
            for name in ("usage", "power", "temperature")
        )
        readings[str(card["gpu"])] = PowerSample(
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
        readings[name.removeprefix("card")] = PowerSample(
            _number(card.get("GPU use (%)")),
            _hottest(power),
            _hottest(value for key, value in card.items() if key.startswith("Temperature")),
        )
    return readings


def _nvidia(text: str) -> Readings:
    readings = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        index, uuid, busy, watts, celsius = (cell.strip() for cell in line.split(","))
        readings[index] = readings[uuid] = PowerSample(*map(_number, (busy, watts, celsius)))
    return readings


def _number(value: Any) -> float | None:
    """Parse a value of the programs: a number, text, or a table with a unit; None for N/A."""
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
    """Run a program once and parse its output for all cards.

    Raises:
        OSError, subprocess.SubprocessError: the program failed or timed out.
        ValueError, LookupError, TypeError, AttributeError: its output has another format.
    """
    words, read = PROGRAMS[program]
    with subprocess.Popen(
        [program, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its child processes can be killed too
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
    """Numbers on this machine, or UUIDs, of the cards that a training uses.

    Args:
        device: Device of the first process, from `hardware.device`, such as `cuda:0`.
        num_processes: Number of processes on this machine, each with its own card.
    """
    first = int(device.partition(":")[2] or 0)
    wanted = range(first, first + 1) if num_processes == 1 else range(num_processes)
    given = next((os.environ[name] for name in VISIBLE if os.environ.get(name)), None)
    if given is None:
        return [str(number) for number in wanted]
    names = [name.strip() for name in given.split(",")]
    return [names[number] for number in wanted if number < len(names)]


class Sampler:
    """Samples some cards in a thread until it is closed.

    Args:
        cards: From `cards_of`; watts are summed, busy shares averaged.
        every: Least number of seconds between samples.
    """

    def __init__(self, cards: Sequence[str], every: float = EVERY_S):
        self.cards, self.every = cards, every
        self._readings: list[PowerSample] = []
        self._last: PowerSample | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, device: str, num_processes: int = 1) -> Sampler | None:
        """The sampler for a training on this device; None on a CPU."""
        return None if device == "cpu" else cls(cards_of(device, num_processes))

    def close(self) -> None:
        """Stop sampling, without waiting for a sample in progress."""
        self._closed.set()

    def taken(self, seconds: float) -> dict[str, float]:
        """Means since the last call, by the keys of a line of metrics, and joules for `seconds`.

        Without a new sample the last one is used. Unknown values are left out.
        """
        with self._lock:
            readings, self._readings = self._readings or [r for r in [self._last] if r], []
        line = {}
        for key, name in ((BUSY, "busy"), (WATTS, "watts"), (CELSIUS, "celsius")):
            values = [v for reading in readings if (v := getattr(reading, name)) is not None]
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
        """Sample with a program until it fails too often or the sampler is closed."""
        failed = 0
        while not self._closed.is_set() and failed < FAILURES:
            began = time.monotonic()
            try:
                reading = self._of_ours(ask(program))
            except UNREADABLE as error:
                failed += 1
                if failed == FAILURES:
                    log.warning("%s cannot be used: %s", program, _first_line(error))
            else:
                failed = 0
                with self._lock:
                    self._readings.append(reading)
                    self._last = reading
            took = time.monotonic() - began
            self._closed.wait(max(self.every, min(20 * took, LONGEST_WAIT_S)))

    def _of_ours(self, readings: Readings) -> PowerSample:
        ours = [readings[name] for name in self.cards]

        def joined(name: str, how: Callable[[list[float]], float]) -> float | None:
            values = [getattr(reading, name) for reading in ours]
            return None if None in values or not values else how(values)

        reading = PowerSample(
            joined("busy", statistics.fmean), joined("watts", sum), joined("celsius", max)
        )
        if reading == PowerSample(None, None, None):
            raise ValueError(f"it reports neither load, power nor temperature of {self.cards}")
        return reading


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of a whole training for `result.json`; empty if no card was sampled.

    Args:
        metrics: The training's lines; those without samples count as the mean of the others.
    """
    seconds = sum(line["seconds"] for line in metrics)
    values = {}
    for key in (BUSY, WATTS, CELSIUS):
        known = [line for line in metrics if key in line]
        if known and (known_s := sum(line["seconds"] for line in known)):
            mean = sum(line["seconds"] * line[key] for line in known) / known_s
            values[key] = round(mean, 1)
    if WATTS in values:
        joules = values[WATTS] * seconds
        num_samples = sum(line["samples_per_s"] * line["seconds"] for line in metrics)
        values["energy_kwh"] = round(joules / JOULES_PER_KWH, 5)
        values["joules_per_sample"] = round(joules / max(num_samples, 1e-9), 1)
    return values
