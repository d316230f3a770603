"""Findings about this machine: compatible versions, card, memory, disk, decoder, token.

torch is imported only by functions that need it; checks that run computations are in `probes`.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

OK, NOTE, WRONG = "ok", "note", "wrong"  # a note is worth reading and stops nothing
COMMAND = "python -m avomni_lib doctor"

# As in pyproject.toml. Unsloth 2026.10.9 refuses later versions of torch.
TORCH_FROM, TORCH_BELOW = (2, 9), (2, 15)
BITSANDBYTES_FROM, BITSANDBYTES_BELOW = (0, 50), (0, 51)
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
PYTORCH_INDEX = "https://download.pytorch.org/whl"
# Distributions that all install to site-packages/triton; they differ in its largest file.
NVIDIA_TRITONS, ROCM_TRITONS = ("triton", "pytorch-triton"), ("triton-rocm", "pytorch-triton-rocm")
TRITONS = (*NVIDIA_TRITONS, *ROCM_TRITONS)
TRITON_LIBRARY = "triton/_C/libtriton.so"
# Device files that the drivers create if there is a card.
CARD_NODES = {"AMD": Path("/dev/kfd"), "NVIDIA": Path("/dev/nvidiactl")}
SEES_NO_CARD = {
    "AMD": "is this user in the groups render and video, and does the container see /dev/kfd and "
    "/dev/dri? Check `rocminfo` and HIP_VISIBLE_DEVICES",
    "NVIDIA": "is the driver as new as this CUDA needs? Check `nvidia-smi` and "
    "CUDA_VISIBLE_DEVICES",
}
SHARED_MEMORY, LEAST_SHARED_BYTES = Path("/dev/shm"), 1 << 30
IMPORT_SECONDS = 300
GREYS = (60, 120, 180)
_CDNA = (
    "up to 0.49 its 4-bit product of one row assumed warps of 32, an MI300X has 64: answers came "
    "out as NaN (bitsandbytes #1885, #1887)"
)


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One finding: its subject, `ok`, `note` or `wrong`, the values, why, and what to do."""

    name: str
    state: str
    found: str
    why: str = ""
    fix: str = ""

    @property
    def text(self) -> str:
        """The values and, unless `ok`, why and what to do, on separate lines."""
        more = {"why": self.why, "what to do": self.fix} if self.state != OK else {}
        return "\n".join([self.found, *(f"{name}: {text}" for name, text in more.items() if text)])

    @classmethod
    def refusal(cls, name: str, error: AvomniError) -> DoctorFinding:
        return cls(name, WRONG, error.what, error.where or "", error.fix or "")


@dataclass(frozen=True)
class Report:
    """All findings."""

    findings: tuple[DoctorFinding, ...]

    @property
    def wrong(self) -> list[DoctorFinding]:
        return [finding for finding in self.findings if finding.state == WRONG]

    @property
    def headline(self) -> str:
        notes = sum(finding.state == NOTE for finding in self.findings)
        wrong = len(self.wrong) or "nothing"
        return f"{wrong} of {len(self.findings)} lines wrong, notes: {notes}"

    def raise_if_wrong(self) -> None:
        """Raise an error if a finding is `wrong`.

        Raises:
            AvomniError: names every such finding and what to do.
        """
        if self.wrong:
            lines = [
                f"\n  - {f.name}: {f.found}; {f.why}\n    what to do: {f.fix}" for f in self.wrong
            ]
            raise AvomniError(
                f"this machine does not compute what training relies on{''.join(lines)}",
                fix=f"mend what is named; {COMMAND} looks at everything again",
            )


class Platform(NamedTuple):
    """A kind of machine: `constraints-<name>.txt`, its setup command, and its triton packages."""

    name: str
    command: str
    tritons: tuple[str, ...]
    bitsandbytes_why: str  # why it needs `BITSANDBYTES_FROM` or later

    def pinned_torch(self) -> str:
        lines = (files.PROJECT_ROOT / f"constraints-{self.name}.txt").read_text().splitlines()
        return next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))


PLATFORMS = {
    row.name: row
    for row in (
        Platform("cpu", "make setup", (), "its optimizers run on a CPU from 0.50 on (#1901)"),
        Platform("rocm6.4", "make rocm ROCM=6.4", ROCM_TRITONS, _CDNA),
        Platform("rocm7.2", "make rocm", ROCM_TRITONS, _CDNA),
        Platform("cuda", "make cuda", NVIDIA_TRITONS, "those before were not tried with this PEFT"),
    )
}


class Triton(NamedTuple):
    """An installed distribution of triton; the owner is the one whose library is on disk."""

    name: str
    version: str
    is_owner: bool

    @property
    def is_for_rocm(self) -> bool:
        # AMD's own images bring a distribution `triton` of version 3.4.0+rocm7.0.0.git…
        return self.name in ROCM_TRITONS or "rocm" in self.version

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Installed:
    """Installed versions.

    Attributes:
        torch: `torch.__version__`, such as 2.9.1+rocm6.4.
        hip, cuda: From `torch.version`; None if torch is not built for it.
        torch_wheel: Version of the distribution: PyPI's wheel of 2.13.0+cu130 is named 2.13.0.
        triton_wanted: Requirement in torch's metadata, such as pytorch-triton-rocm==3.5.1.
    """

    torch: str
    hip: str | None = None
    cuda: str | None = None
    torch_wheel: str | None = None
    bitsandbytes: str | None = None
    tritons: tuple[Triton, ...] = ()
    triton_wanted: str | None = None

    @property
    def platform(self) -> Platform:
        """The platform that matches this torch best."""
        if self.hip:
            return PLATFORMS["rocm6.4" if _release(self.hip) < (7, 0) else "rocm7.2"]
        return PLATFORMS["cuda" if self.cuda else "cpu"]

    @property
    def origin(self) -> str:
        """Origin of this torch, from the local part of its version and its wheel's name."""
        local = self.torch.partition("+")[2]
        if re.fullmatch(r"cpu|cu\d+|rocm\d+(\.\d+){1,2}", local):
            return f"{PYTORCH_INDEX}/{local}" if "+" in (self.torch_wheel or self.torch) else "PyPI"
        return "an image's own build" if local else "PyPI or conda"


def installed() -> Installed:
    """Versions of torch, bitsandbytes and triton; imports torch."""
    import torch
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("torch") or ()]
    return Installed(
        torch=torch.__version__,
        hip=torch.version.hip,
        cuda=torch.version.cuda,
        torch_wheel=_version("torch"),
        bitsandbytes=_version("bitsandbytes"),
        tritons=tritons(),
        triton_wanted=next((f"{w.name}{w.specifier}" for w in wanted if w.name in TRITONS), None),
    )


def tritons() -> tuple[Triton, ...]:
    """The installed distributions of triton, and whether the library on disk is theirs."""
    present = []
    for name in filter(_version, TRITONS):
        distribution = metadata.distribution(name)
        state = [
            (files.state_of(Path(str(file.locate()))) or (None,))[0] == file.size
            for file in distribution.files or ()
            if str(file) == TRITON_LIBRARY
        ]
        present.append(Triton(name, distribution.version, any(state)))
    return tuple(present)


def fit(versions: Installed) -> list[DoctorFinding]:
    """Whether versions are compatible: findings `torch`, `platform`, `bitsandbytes`, `triton`."""
    return [_torch(versions), _platform(versions), _bitsandbytes(versions), _triton(versions)]


def _torch(versions: Installed) -> DoctorFinding:
    name, command = "torch", versions.platform.command
    text, release = f"torch {versions.torch} from {versions.origin}", _release(versions.torch)
    if release < TORCH_FROM:
        fix = f"{command}, or an image with a newer torch"
        return DoctorFinding(name, WRONG, text, "older than 2.9, the oldest tried", fix)
    if release >= TORCH_BELOW:
        why = "Unsloth refuses 2.15 and later; transformers and PEFT take it"
        return DoctorFinding(name, NOTE, text, why, f"{command}, or model.backend: transformers")
    return DoctorFinding(name, OK, text)


def _platform(versions: Installed) -> DoctorFinding:
    row, torch = versions.platform, versions.torch
    pinned = row.pinned_torch()
    text = f"{row.name}: constraints-{row.name}.txt, torch {pinned}"
    if versions.hip and _release(versions.hip) < (6, 4):
        why = f"torch is built for ROCm {versions.hip}; bitsandbytes has no library below 6.4"
        return DoctorFinding("platform", WRONG, text, why, row.command)
    # Only the pinned names of ROCm's and CPU wheels contain the build.
    if (torch if "+" in pinned else torch.partition("+")[0]) != pinned:
        fix = f"trust the lines below, which run it; or {row.command}"
        return DoctorFinding("platform", NOTE, text, f"torch is {torch}: not tried together", fix)
    return DoctorFinding("platform", OK, text)


def _bitsandbytes(versions: Installed) -> DoctorFinding:
    name, version, why = "bitsandbytes", versions.bitsandbytes, versions.platform.bitsandbytes_why
    # --no-deps, as its dependencies would replace ROCm's torch by CUDA's (unsloth #4720).
    fix = "pip install --no-deps 'bitsandbytes>=0.50,<0.51'"
    if version is None:
        why = "the 4-bit base model and the 8-bit optimizers are its work"
        return DoctorFinding(name, WRONG, "not installed", why, fix)
    if _release(version) >= BITSANDBYTES_BELOW:
        return DoctorFinding(name, NOTE, version, "0.51 and later were not tried", fix)
    state = WRONG if _release(version) < BITSANDBYTES_FROM else OK
    return DoctorFinding(name, state, version, why, fix)


def _triton(versions: Installed) -> DoctorFinding:
    name, present = "triton", versions.tritons
    text = " and ".join(map(str, present)) or "none"
    if not versions.platform.tritons:
        return DoctorFinding(name, OK, f"{text}; a CPU needs none")
    wanted = versions.triton_wanted or versions.platform.tritons[-1 if versions.hip else 0]
    fix = f"pip uninstall -y {' '.join(TRITONS)}; "
    if versions.origin == "an image's own build":
        fix += f"then {wanted} from where the image took torch, or begin a new container"
    else:
        index = f" --index-url {PYTORCH_INDEX}/{versions.torch.partition('+')[2]}"
        fix += f"pip install --no-deps{index if versions.hip else ''} '{wanted}'"
    if not present:
        why = "torch.compile and Unsloth's kernels need it; plain PEFT does without"
        return DoctorFinding(name, NOTE, text, why, fix)
    owners = [triton for triton in present if triton.is_owner]
    if not owners:
        why = "site-packages/triton is of none of them: one was installed over the other in part"
        return DoctorFinding(name, WRONG, text, why, fix)
    if any(triton.is_for_rocm != bool(versions.hip) for triton in owners):
        has, needs = ("NVIDIA's", "ROCm's") if versions.hip else ("ROCm's", "NVIDIA's")
        why = (
            f"site-packages/triton is {has} and torch needs {needs}; unsloth_zoo and "
            "cut_cross_entropy bring PyPI's unless they are installed with --no-deps"
        )
        return DoctorFinding(name, WRONG, str(owners[0]), why, fix)
    if len(present) > 1:
        why = f"the files are of {owners[0]}, but removing the other would remove them too"
        return DoctorFinding(name, NOTE, text, why, fix)
    return DoctorFinding(name, OK, f"{text}, as this torch needs it")


def python() -> DoctorFinding:
    """The Python version, and whether the image's own Python has a torch for a card."""
    version = f"Python {sys.version.split()[0]}"
    if not PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        fix = "make PYTHON=/path/to/python3.11 setup"
        return DoctorFinding("python", WRONG, version, "3.11 and 3.12 are what this runs on", fix)
    if sys.prefix == sys.base_prefix:
        return DoctorFinding("python", OK, f"{version}, no virtual environment: VENV=system's")
    # The torch of the image's Python, found by folder names.
    folder = "python{}.{}".format(*sys.version_info)
    base = Path(sys.base_prefix)
    places = [
        str(base / lib / folder / packages)
        for lib in ("lib", "local/lib")
        for packages in ("site-packages", "dist-packages")
    ]
    theirs = next((d.version for d in metadata.distributions(name="torch", path=places)), None)
    text = f"{version} in the virtual environment {sys.prefix}"
    if theirs and theirs != (ours := _version("torch")) and not theirs.endswith("+cpu"):
        why = f"the image's own Python brings torch {theirs}; this environment has {ours}"
        return DoctorFinding(
            "python", NOTE, text, why, "make VENV=system … works with the image's own"
        )
    return DoctorFinding("python", OK, text)


def accelerator(
    device: Choice, versions: Installed, base_model: str, processes: int
) -> DoctorFinding:
    """The card that torch uses, or why it uses none."""
    name = "accelerator"
    if device.value != "cpu":
        import torch

        count = torch.cuda.device_count()
        text = f"{count} × {device.reason}"
        if processes > count:
            why = f"training.num_processes is {processes}, one a card"
            return DoctorFinding(name, WRONG, text, why, f"training.num_processes: {count}")
        return DoctorFinding(name, OK, text)
    built_for = "AMD" if versions.hip else "NVIDIA" if versions.cuda else None
    present = [vendor for vendor, node in CARD_NODES.items() if node.exists()]
    if built_for in present:
        why = f"{CARD_NODES[built_for]} is there, so there is a card"
        return DoctorFinding(name, WRONG, device.reason, why, SEES_NO_CARD[built_for])
    if present:
        # Typically bitsandbytes or Unsloth replaced ROCm's torch by PyPI's (unsloth #4720).
        why = f"torch is built for {built_for or 'CPUs'}, the card is of {' and '.join(present)}"
        fix = "make rocm, or make VENV=system …" if present == ["AMD"] else "make cuda"
        return DoctorFinding(name, WRONG if built_for else NOTE, device.reason, why, fix)
    if base_model == "tiny":
        return DoctorFinding(name, OK, f"{device.reason}; the tiny base model needs none")
    why = "the 8B takes hours a step on a CPU; the demo's tiny base model takes minutes in all"
    return DoctorFinding(name, NOTE, device.reason, why, "rent a machine, or params/demo.yaml")


def unsloth(backend: str, device: str) -> DoctorFinding:
    """Whether Unsloth is the backend here (`model.backend`), and can be imported."""
    name = "unsloth"
    try:
        choice = hardware.backend(backend, device)
    except AvomniError as error:
        return DoctorFinding.refusal(name, error)
    if choice.value != "unsloth":
        is_missed = device != "cpu" and backend == "auto"
        fix = "pip install --no-deps unsloth unsloth_zoo" if is_missed else ""
        return DoctorFinding(name, NOTE if is_missed else OK, f"not used: {choice.reason}", "", fix)
    # In a separate process and folder: it patches transformers and writes to the working folder.
    command = [sys.executable, "-c", "import unsloth"]
    options = {"capture_output": True, "text": True, "timeout": IMPORT_SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, cwd=folder, **options)
            fault = "".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else None
        except subprocess.TimeoutExpired:
            fault = f"not in {IMPORT_SECONDS} s"
    if fault is None:
        return DoctorFinding(name, OK, f"unsloth {_version('unsloth')} can be imported")
    fix = "mend the lines torch and triton first; or model.backend: transformers"
    text = f"unsloth cannot be imported: {fault[:200]}"
    return DoctorFinding(name, WRONG, text, "model.backend takes it here", fix)


def memory(device: str) -> list[DoctorFinding]:
    """The card's and the host's memory."""
    host = hardware.host_memory()
    text = "{} free of {}"
    lines = [
        DoctorFinding("host memory", OK, text.format(gigabytes(host.free), gigabytes(host.total)))
    ]
    if card := hardware.device_memory(device):
        text = text.format(gigabytes(card.free), gigabytes(card.total))
        line = DoctorFinding("device memory", OK, text)
        if card.free < 0.9 * card.total:
            why = "another process holds the rest, and training is planned for all of it"
            fix = "rocm-smi --showpids, or nvidia-smi, names it; a notebook's kernel may be one"
            line = DoctorFinding("device memory", NOTE, text, why, fix)
        lines.insert(0, line)
    return lines


def shared_memory(num_processes: int) -> DoctorFinding:
    """Free space in /dev/shm, of which containers have 64 MB by default."""
    name = str(SHARED_MEMORY)
    if not SHARED_MEMORY.exists():
        return DoctorFinding(name, OK, "there is none; nothing here needs it")
    free = shutil.disk_usage(SHARED_MEMORY).free
    text = f"{gigabytes(free)} free"
    if free >= LEAST_SHARED_BYTES:
        return DoctorFinding(name, OK, text)
    why = f"several processes communicate through it (RCCL, NCCL); this run has {num_processes}"
    return DoctorFinding(name, NOTE, text, why, "docker run --shm-size=8g …, or --ipc=host")


def room(p: Params, cache_bytes: int | None) -> DoctorFinding:
    """Free space on the disk of `run.outputs_dir` for the run's cache (None without a run)."""
    free = files.free_bytes(p.run_dir)
    text = f"{gigabytes(free)} free at {files.resolve(p.run.outputs_dir)}"
    if cache_bytes is None or p.cache_dir.exists() or cache_bytes < free:
        return DoctorFinding("disk", OK, text)
    why = f"the run's cache takes {gigabytes(cache_bytes)}: 03_etl would stop for want of room"
    fix = "run.outputs_dir on a larger disk, processing.storage: jpeg, or fewer chunks"
    return DoctorFinding("disk", NOTE, text, why, fix)


def decoder(wanted: str) -> DoctorFinding:
    """Encode three frames and read them back with the chosen decoder."""
    from avomni_lib.etl.video import reader

    name = "decoder"
    try:
        choice, reason = reader.choose_decoder(wanted)
        frames = reader.read_frames(_three_greys(), [0, 100_000, 200_000], decoder=choice)
    except AvomniError as error:
        return DoctorFinding.refusal(name, error)
    means = frames.images.reshape(3, -1).mean(axis=1)
    if abs(means - GREYS).max() > 8:
        text = f"{choice} shows greys of {means.round().tolist()}"
        return DoctorFinding(
            name, WRONG, text, f"they were written as {GREYS}", "processing.decoder: pyav"
        )
    return DoctorFinding(name, OK, f"{choice}: {reason}")


def token(source: str | None, is_gated: bool) -> DoctorFinding:
    """Whether a Hugging Face token is saved or set; its validity is not checked.

    Args:
        source: `dataset.source`; None without a run.
        is_gated: Whether the data set is known to require one.
    """
    from avomni_lib.dataset.download import hub

    if hub.get_token():
        return DoctorFinding("token", OK, "there is one for Hugging Face")
    if source in ("world", "folder", "lerobot"):
        return DoctorFinding("token", OK, f"none, and dataset.source: {source} needs none")
    state = WRONG if source == "hub" and is_gated else NOTE
    fix = "hf auth login, or HF_TOKEN in the environment"
    return DoctorFinding(
        "token", state, "none", "the real data set is gated: 02_download needs one", fix
    )


def _three_greys() -> bytes:
    """An mp4 of 96×64 px at ten frames per second, each frame a uniform grey."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for grey in GREYS:
            image = np.full((64, 96, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """(2, 9) for 2.9.0a0+50eac811a6.nv25.09, (7, 2) for 7.2.26015-fc0010cf6a."""
    return tuple(int(part) for part in version.split(".")[:2])
