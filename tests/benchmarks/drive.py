"""A clip to measure on: textured ground and sky in motion, cars, sensor noise, 1920×1080.

Each frame bears its number as squares that survive shrinking. Encoded once into
outputs/benchmarks/clips; all streams in one pass, as drawing costs as much as encoding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from avomni_lib import files

WIDTH, HEIGHT, FPS = 1920, 1080, 30
HORIZON, EYE_M, FOCAL = 430, 1.5, 1000.0
SPEED_MPS, TEXEL_M = 14.0, 0.02
BITS, SQUARE = 10, 48  # the number and its complement, two rows of squares


@dataclass(frozen=True)
class Encoding:
    """How the drive is encoded: FFmpeg's codec and options, and the number of frames."""

    codec: str
    options: dict[str, str]
    num_frames: int


class Drive:
    """The pictures, a function of their number."""

    def __init__(self, seed: int = 5):
        rng = np.random.default_rng(seed)
        self.ground, self.sky = _texture(rng, 1024, 2048), _texture(rng, 512, 4096)
        self.noise = rng.normal(0, 2.5, (4, HEIGHT, WIDTH)).astype(np.int8)
        self.shift = rng.integers(0, min(WIDTH, HEIGHT), (4096, 2))
        depth = FOCAL * EYE_M / (np.arange(HORIZON, HEIGHT) - HORIZON + 12.0)
        side = (np.arange(WIDTH) - WIDTH / 2)[None] * depth[:, None] / FOCAL
        self.rows = (depth / TEXEL_M).astype(np.int64)[:, None]
        self.cols = (side / TEXEL_M).astype(np.int64) % self.ground.shape[1]

    def picture(self, number: int) -> np.ndarray:
        """(HEIGHT × 3 / 2, WIDTH) uint8, yuv420p."""
        luma = np.empty((HEIGHT, WIDTH), np.uint8)
        luma[:HORIZON] = np.roll(self.sky, -2 * number, axis=1)[:HORIZON, :WIDTH]
        travelled = int(number * SPEED_MPS / FPS / TEXEL_M)
        luma[HORIZON:] = self.ground[(self.rows + travelled) % len(self.ground), self.cols]
        for car in range(5):
            x = (311 * car + (5 + 4 * car) * number) % (WIDTH - 260)
            y, size = HORIZON - 20 + 60 * car, 60 + 30 * car
            luma[y : y + size // 2, x : x + size] = self.sky[
                : size // 2, 80 * car : 80 * car + size
            ]
        down, right = self.shift[number % len(self.shift)]
        noise = np.roll(self.noise[number % len(self.noise)], (down, right), axis=(0, 1))
        luma = np.clip(luma.astype(np.int16) + noise, 16, 235).astype(np.uint8)
        bits = [number >> place & 1 for place in range(BITS)]
        light = np.array([bits, [1 - bit for bit in bits]], np.uint8) * 180 + 30
        luma[: 2 * SQUARE, : BITS * SQUARE] = np.kron(light, np.ones((SQUARE, SQUARE), np.uint8))
        chroma = np.empty((HEIGHT // 2, WIDTH), np.uint8)  # U's rows, then V's
        thin = luma[::2, ::2] // 8
        chroma[: HEIGHT // 4] = (112 + thin).reshape(HEIGHT // 4, WIDTH)
        chroma[HEIGHT // 4 :] = (144 - thin).reshape(HEIGHT // 4, WIDTH)
        return np.vstack([luma, chroma])


def numbers(images: np.ndarray) -> list[int]:
    """The numbers that (T, h, w, 3) images of the drive bear; -1 where none can be read."""
    height, width = images.shape[1:3]
    rows = ((np.arange(2) + 0.5) * SQUARE * height / HEIGHT).astype(int)
    cols = ((np.arange(BITS) + 0.5) * SQUARE * width / WIDTH).astype(int)
    light = images[:, rows][:, :, cols].mean(axis=-1) > 128
    read = (light[:, 0] << np.arange(BITS)).sum(axis=1)
    return np.where((light[:, 0] != light[:, 1]).all(axis=1), read, -1).tolist()


def encoded(folder: Path, encodings: Mapping[str, Encoding]) -> dict[str, Path]:
    """The mp4 of each encoding, made where it is not there yet."""
    paths = {
        name: folder / f"{name.replace(' ', '_')}.{files.hash_json(vars(each))[:8]}.mp4"
        for name, each in encodings.items()
    }
    missing = {name: each for name, each in encodings.items() if not paths[name].exists()}
    with contextlib.ExitStack() as stack:
        writers = {
            name: (each, stack.enter_context(_writer(paths[name], each)))
            for name, each in missing.items()
        }
        drive = Drive()
        for number in range(max((each.num_frames for each in missing.values()), default=0)):
            picture = drive.picture(number)
            for each, write in writers.values():
                if number < each.num_frames:
                    write(picture, number)
    return paths


@contextlib.contextmanager
def _writer(path: Path, encoding: Encoding):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
        track = container.add_stream(encoding.codec, rate=FPS, options=encoding.options)
        track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"

        def write(picture: np.ndarray, number: int) -> None:
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts = number
            container.mux(track.encode(frame))

        yield write
        container.mux(track.encode())
    os.replace(partial, path)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 with detail at every scale, as asphalt and leaves have."""
    image = np.zeros((height, width))
    for side in (1, 2, 4, 8, 16, 32):
        coarse = rng.standard_normal((height // side, width // side))
        image += np.kron(coarse, np.ones((side, side))) * side**0.6
    return np.clip(118 + image / image.std() * 32, 0, 255).astype(np.uint8)


def table(rows: Iterable[Iterable[object]]) -> str:
    """Rows as text, columns aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
