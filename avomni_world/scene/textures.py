"""Textures of the ground and of the solids, generated for each clip."""

from __future__ import annotations

import numpy as np

from avomni_world.scene.towns import Town

ROAD_WIDTH_M = 28.0  # of the strip that carries the road's texture: lanes, shoulders and verges
ROAD_PERIOD_M = 24.0
GROUND_PERIOD_M = 32.0
LANES_M = 3.6  # from the centre line to the edge line
TAR_M = LANES_M + 0.35  # to the edge of the asphalt


def noise(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> np.ndarray:
    """Seamless grey noise: the mean of random grids with these numbers of cells.

    Returns:
        (size, size) float64 in 0..1, mean 0.5.
    """
    total = np.zeros((size, size))
    for cells in octaves:
        grid = rng.random((cells, cells))
        at = np.arange(size) * cells / size
        low, part = at.astype(int), at - at.astype(int)
        rows = grid[low] * (1 - part)[:, None] + grid[(low + 1) % cells] * part[:, None]
        total += rows[:, low] * (1 - part) + rows[:, (low + 1) % cells] * part
    return total / len(octaves)


def _paint(colour, shade: np.ndarray, depth: float) -> np.ndarray:
    return np.asarray(colour, float) * (1 + depth * (2 * shade[..., None] - 1))


def textures(rng: np.random.Generator, town: Town) -> dict[str, np.ndarray]:
    """The town's pictures for one clip: things, road, ground; (H, W, 3) uint8, v = 0 first."""
    flat = 0.0 if town.landmarks else 1.0
    road = _road_texture(rng, town, flat)
    coarse = noise(rng, 256, (4, 16, 64))
    fine = noise(rng, 256, (128, 256))
    ground = _paint(town.ground, coarse, 0.7 * flat) * (1 + 0.35 * flat * (2 * fine - 1))[..., None]
    pictures = {"things": _things_texture(rng, town, flat), "road": road, "ground": ground}
    return {name: np.clip(rgb, 0, 255).astype(np.uint8) for name, rgb in pictures.items()}


def _road_texture(rng: np.random.Generator, town: Town, flat: float) -> np.ndarray:
    """Verge, shoulder, two lanes, shoulder, verge across; one period of the dashes along."""
    size = 512
    left = (np.arange(size) + 0.5) / size * ROAD_WIDTH_M - ROAD_WIDTH_M / 2
    along = (np.arange(size) + 0.5) / size * ROAD_PERIOD_M
    grain = noise(rng, size, (256, 512)) * 0.5 + noise(rng, size, (8, 32, 64)) * 0.5
    patches = noise(rng, size, (3, 6, 12))
    picture = (
        _paint(town.verge, grain, 0.95 * flat) * (1 + 0.4 * flat * (2 * patches - 1))[..., None]
    )
    distance = np.abs(left)
    gravel = _paint(town.shoulder, noise(rng, size, (128, 256)), 0.6 * flat)
    tar = _paint(town.asphalt, noise(rng, size, (32, 128, 512)), 0.5 * flat)
    tar *= (1 + 0.5 * flat * (2 * patches - 1))[..., None]
    picture[:, distance < LANES_M + 1.1] = gravel[:, distance < LANES_M + 1.1]
    picture[:, distance < TAR_M] = tar[:, distance < TAR_M]
    worn = _paint(town.marks, noise(rng, size, (64, 256)), 0.12 * flat)
    edge = np.abs(distance - LANES_M) < 0.09
    picture[:, edge] = worn[:, edge]
    dash = np.ix_((along % 8.0) < 3.2, distance < 0.09)
    picture[dash] = worn[dash]
    return picture


def _things_texture(rng: np.random.Generator, town: Town, flat: float) -> np.ndarray:
    """Four cells, each multiplied by a solid's colour; the brightest texel has that colour."""
    half = 64
    picture = np.full((2 * half, 2 * half, 3), 255.0)
    if not flat:
        return picture
    shade = noise(rng, half, (4, 16, 64))[..., None]
    picture[:half, :half] *= 0.84 + 0.3 * shade
    wall = 255 * (0.8 + 0.35 * noise(rng, half, (8, 64))[..., None]) * np.ones(3)
    for row in (8, 28, 48):
        for col in (5, 20, 35, 50):
            lit = 1.0 if town.window[0] < 128 or rng.random() < 0.6 else 0.35
            wall[row : row + 10, col : col + 8] = np.array(town.window) * lit
    picture[:half, half:] = wall
    ribs = 0.72 + 0.28 * (np.arange(half) % 8 < 5)
    picture[half:, :half] *= ribs[None, :, None] * (0.85 + 0.3 * shade)
    picture[half:, half:] *= 0.5 + 1.0 * noise(rng, half, (8, 32))[..., None]
    return picture
