"""What a machine brings, a line each: Python, card, runtime, memory, room, decoder, token."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes
from avomni_lib.training.doctor.findings import NOTE, OK, WRONG, Finding
from avomni_lib.training.doctor.platforms import TRITONS, Installed, Triton

# Files that the drivers make where there is a card.
CARD_NODES = {"AMD": Path("/dev/kfd"), "NVIDIA": Path("/dev/nvidiactl")}
ROCM_VERSION = Path("/opt/rocm/.info/version")
SHARED_MEMORY, LEAST_SHARED_BYTES = Path("/dev/shm"), 1 << 30
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
# The largest file of a triton, other in each build.
TRITON_LIBRARY = "triton/_C/libtriton.so"
IMPORT_SECONDS = 300
SEES_NO_CARD = {
    "AMD": "is this user in the groups render and video, and does the container see /dev/kfd and "
    "/dev/dri? `rocminfo` and HIP_VISIBLE_DEVICES tell",
    "NVIDIA": "is the driver as new as this CUDA needs? `nvidia-smi` and CUDA_VISIBLE_DEVICES tell",
}


def installed() -> Installed:
    """torch, bitsandbytes and triton as they lie on this machine; imports torch."""
    import torch

    return Installed(
        torch=torch.__version__,
        hip=torch.version.hip,
        cuda=torch.version.cuda,
        torch_wheel=_version("torch"),
        bitsandbytes=_version("bitsandbytes"),
        tritons=tritons(),
        triton_wanted=_triton_wanted(),
    )


def tritons() -> tuple[Triton, ...]:
    """The installed distributions of triton, each with whether its library is the one there."""
    found = []
    for name in TRITONS:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        brought = [f for f in distribution.files or () if str(f) == TRITON_LIBRARY]
        is_owner = any(
            path.exists() and path.stat().st_size == entry.size
            for entry in brought
            for path in [Path(entry.locate())]
        )
        found.append(Triton(name, distribution.version, is_owner))
    return tuple(found)


def python() -> Finding:
    """Whose Python this is, and whether the image's own brings a torch for a card."""
    version = f"Python {sys.version.split()[0]}"
    if not PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        fix = "make PYTHON=/path/to/python3.11 setup"
        return Finding("python", WRONG, version, "3.11 and 3.12 are what this runs on", fix)
    if sys.prefix == sys.base_prefix:
        return Finding("python", OK, f"{version}, no virtual environment: VENV=system's")
    told = f"{version} in the virtual environment {sys.prefix}"
    theirs, ours = _torch_of(Path(sys.base_prefix)), _version("torch")
    if theirs and theirs != ours and not theirs.endswith("+cpu"):
        why = f"the image's own Python brings torch {theirs}; this environment has {ours}"
        return Finding("python", NOTE, told, why, "make VENV=system … works with the image's own")
    return Finding("python", OK, told)


def accelerator(device: Choice, found: Installed, base_model: str, num_processes: int) -> Finding:
    """The card that torch computes on, or why it computes on none."""
    name = "accelerator"
    if device.value != "cpu":
        import torch

        count = torch.cuda.device_count()
        if num_processes > count:
            why = f"training.num_processes is {num_processes}, one a card"
            fix = f"training.num_processes: {count}"
            return Finding(name, WRONG, f"{count} × {device.reason}", why, fix)
        return Finding(name, OK, f"{count} × {device.reason}")
    built_for = "AMD" if found.hip else "NVIDIA" if found.cuda else None
    there = [vendor for vendor, node in CARD_NODES.items() if node.exists()]
    if built_for in there:
        why = f"{CARD_NODES[built_for]} is there, so there is a card"
        return Finding(name, WRONG, device.reason, why, SEES_NO_CARD[built_for])
    if there:
        # bitsandbytes and Unsloth have replaced ROCm's torch by PyPI's on the way (unsloth #4720).
        state = WRONG if built_for else NOTE
        what = f"torch is built for {built_for or 'CPUs'}"
        why = f"{what}, and the machine has a card of {' and '.join(there)}"
        fix = "make rocm, or make VENV=system …" if there == ["AMD"] else "make cuda"
        return Finding(name, state, device.reason, why, fix)
    if base_model == "tiny":
        return Finding(name, OK, f"{device.reason}; the tiny base model needs none")
    why = "the 8B takes hours a step on a CPU; the demo's tiny base model takes minutes in all"
    return Finding(name, NOTE, device.reason, why, "rent a machine, or params/demo.yaml")


def runtime(found: Installed) -> Finding:
    """ROCm or CUDA as torch brings it, beside the machine's."""
    name = "runtime"
    if found.hip is None:
        told = f"CUDA {found.cuda} in torch" if found.cuda else "none: torch is built for CPUs"
        return Finding(name, OK, told)
    told = f"ROCm {found.hip} in torch"
    if not ROCM_VERSION.exists():
        return Finding(name, OK, f"{told}, none in /opt/rocm; torch needs the kernel's driver only")
    theirs = ROCM_VERSION.read_text().strip()
    told = f"{told}, {theirs} in /opt/rocm"
    if theirs.split(".")[0] == found.hip.split(".")[0]:
        return Finding(name, OK, told)
    why = "a driver serves the ROCm of its own generation; across two it may and may not"
    fix = f"make rocm ROCM={'6.4' if theirs.startswith('6') else '7.2'}, or trust the runs below"
    return Finding(name, NOTE, told, why, fix)


def unsloth(wanted: str, on: str) -> Finding:
    """Whether Unsloth is the backend here and can be imported, tried in a process of its own.

    Args:
        wanted: `model.backend`.
    """
    name = "unsloth"
    try:
        choice = hardware.backend(wanted, on)
    except AvomniError as error:
        return Finding(name, WRONG, error.what, error.where or "", error.fix or "")
    if choice.value != "unsloth":
        state = NOTE if on != "cpu" and wanted == "auto" else OK
        fix = "pip install --no-deps unsloth unsloth_zoo" if state == NOTE else ""
        return Finding(name, state, f"not used: {choice.reason}", "", fix)
    # It patches transformers as it is imported, and leaves a folder where it is.
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                [sys.executable, "-c", "import unsloth"],
                capture_output=True,
                text=True,
                cwd=folder,
                timeout=IMPORT_SECONDS,
            )
            said = ran.stderr.strip().splitlines()[-1:] if ran.returncode else None
        except subprocess.TimeoutExpired:
            said = [f"not in {IMPORT_SECONDS} s"]
    if said is None:
        return Finding(name, OK, f"unsloth {_version('unsloth')} can be imported")
    told = f"unsloth cannot be imported: {''.join(said)[:200]}"
    fix = "mend the lines torch and triton first; or model.backend: transformers"
    return Finding(name, WRONG, told, "model.backend takes it here", fix)


def memory(on: str) -> list[Finding]:
    """The card's and the host's memory."""
    host, card = hardware.host_memory(), hardware.device_memory(on)
    lines = []
    if card:
        told = f"{gigabytes(card.free)} free of {gigabytes(card.total)}"
        is_shared = card.free < 0.9 * card.total
        why = "another process holds the rest, and training is planned for all of it"
        fix = "rocm-smi --showpids, or nvidia-smi, names it; a notebook's kernel may be one"
        lines.append(
            Finding("device memory", NOTE, told, why, fix)
            if is_shared
            else Finding("device memory", OK, told)
        )
    told = f"{gigabytes(host.free)} free of {gigabytes(host.total)}"
    return [*lines, Finding("host memory", OK, told)]


def shared_memory(num_processes: int) -> Finding:
    """Room in /dev/shm, of which containers get 64 MB unless they are told otherwise."""
    name = str(SHARED_MEMORY)
    if not SHARED_MEMORY.exists():
        return Finding(name, OK, "there is none; nothing here needs it")
    free = shutil.disk_usage(SHARED_MEMORY).free
    told = f"{gigabytes(free)} free"
    if free >= LEAST_SHARED_BYTES:
        return Finding(name, OK, told)
    why = (
        f"the {num_processes} processes of this run talk through it (RCCL, NCCL)"
        if num_processes > 1
        else "RCCL and NCCL of several processes need it, and workers of torch's DataLoader; one "
        "process with our own loader does not"
    )
    return Finding(name, NOTE, told, why, "docker run --shm-size=8g …, or --ipc=host")


def room(p: Params, num_bytes: int | None) -> Finding:
    """Room on the disk of `run.outputs_dir`.

    Args:
        num_bytes: Of the cache that the run makes there; None where no run is asked about.
    """
    free = files.free_bytes(p.run_dir)
    told = f"{gigabytes(free)} free at {files.resolve(p.run.outputs_dir)}"
    if num_bytes is None or p.cache_dir.exists():
        return Finding("disk", OK, told)
    told = f"{told}, the run's cache takes {gigabytes(num_bytes)}"
    if num_bytes < free:
        return Finding("disk", OK, told)
    fix = "run.outputs_dir on a larger disk, processing.storage: jpeg, or fewer chunks"
    return Finding("disk", NOTE, told, "03_etl would stop for want of room", fix)


def decoder(wanted: str) -> Finding:
    """Three pictures written as a video and read back by the decoder that is chosen."""
    from avomni_lib.etl.video import reader

    name = "decoder"
    try:
        choice, reason = reader.choose_decoder(wanted)
        frames = reader.read_frames(_three_greys(), [0, 100_000, 200_000], decoder=choice)
    except AvomniError as error:
        return Finding(name, WRONG, error.what, error.where or "", error.fix or "")
    means = frames.images.reshape(3, -1).mean(axis=1)
    if abs(means - _GREYS).max() > 8:
        told = f"{choice} shows greys of {', '.join(f'{mean:.0f}' for mean in means)}"
        why = f"they were written as {', '.join(map(str, _GREYS))}"
        return Finding(name, WRONG, told, why, "processing.decoder: pyav")
    return Finding(name, OK, f"{choice}: {reason}")


def token(source: str | None, is_gated: bool) -> Finding:
    """Whether a token of Hugging Face is saved or set; nobody is asked whether it holds.

    Args:
        source: `dataset.source`; None where no run is asked about.
        is_gated: Whether the data set is known to ask for one.
    """
    from avomni_lib.dataset.download import hub

    name = "token"
    if hub.get_token():
        return Finding(name, OK, "there is one for Hugging Face")
    fix = "hf auth login, or HF_TOKEN in the environment"
    if source in ("world", "folder"):
        return Finding(name, OK, f"none, and dataset.source: {source} needs none")
    told = "none for Hugging Face"
    if source == "hub" and is_gated:
        return Finding(name, WRONG, told, "the data set is gated: no file comes without one", fix)
    return Finding(name, NOTE, told, "the real data set is gated: 02_download needs one", fix)


_GREYS = (60, 120, 180)


def _three_greys() -> bytes:
    """An mp4 of 96×64 px, ten frames a second, each of one grey."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for grey in _GREYS:
            image = np.full((64, 96, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _triton_wanted() -> str | None:
    """What torch's own metadata asks for, without its conditions: `pytorch-triton-rocm==3.5.1`."""
    from packaging.requirements import Requirement

    for line in metadata.requires("torch") or ():
        wanted = Requirement(line)
        if wanted.name in TRITONS:
            return f"{wanted.name}{wanted.specifier}"
    return None


def _torch_of(prefix: Path) -> str | None:
    """The torch beside another Python, read from its folder's names alone."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    libraries = [prefix / "lib" / version, prefix / "local" / "lib" / version]
    places = [str(lib / kind) for lib in libraries for kind in ("site-packages", "dist-packages")]
    places = [place for place in places if os.path.isdir(place)]
    return next((d.version for d in metadata.distributions(name="torch", path=places)), None)
