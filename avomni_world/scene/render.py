"""Pictures of a scene: panda3d's software rasteriser, headless, the whole rig in one buffer.

Each camera is drawn as a perspective projection into its own region; one gather with precomputed
indices turns these into the published f-theta pictures. A picture with time t shows the world at t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from panda3d import core as panda

from avomni_lib.dataset.cameras import CAMERAS, Camera
from avomni_world.scene.lens import Lens, Raster, make_lens, pack
from avomni_world.scene.scenery import sky_mesh
from avomni_world.scene.scenes import Scene
from avomni_world.scene.shapes import Mesh
from avomni_world.scene.towns import Town
from avomni_world.scene.traffic import Vehicle

NEAR_M, FAR_M, TELE_FAR_M = 0.5, 190.0, 300.0
# Pixels drawn per pixel of the picture, on the axis; perspective adds more at a wide lens's edges.
# p3tinydisplay rounds corners to whole pixels, so with fewer of them edges jitter.
WIDE_DENSITY, NARROW_DENSITY = 1.2, 1.7

ORDER = 10_000  # more than there are meshes in a scene
FLAT = {"ground": 1, "road": 2}  # painted after the sky in this order

panda.loadPrcFileData(
    "avomni",
    """
    notify-level fatal
    notify-level-display fatal
    notify-level-tinydisplay fatal
    audio-library-name null
    textures-power-2 none
    """,
)


class Drawable(Protocol):
    """What can be drawn: a scene, or a simulation of one."""

    @property
    def seed(self) -> int: ...
    @property
    def town(self) -> Town: ...
    @property
    def textures(self) -> dict[str, np.ndarray]: ...
    @property
    def meshes(self) -> tuple[Mesh, ...]: ...
    @property
    def vehicles(self) -> tuple[Vehicle, ...]: ...
    def camera_poses(self, camera: str, times_s: np.ndarray) -> np.ndarray: ...
    def vehicle_poses(self, times_s: np.ndarray) -> np.ndarray: ...


class Renderer:
    """Draws scenes for a set of cameras.

    panda3d's engine is global in a process. Several renderers take turns: only the one that draws
    has an active buffer.

    Args:
        width, height: Pixels of each camera's picture.
        cameras: Their order is the order of the pictures.
    """

    def __init__(self, width: int, height: int, cameras: Sequence[Camera] = CAMERAS):
        self.width, self.height, self.cameras = width, height, tuple(cameras)
        self.scene: Drawable | None = None
        self.lenses: dict[str, Lens] = {}
        self._engine = panda.GraphicsEngine.getGlobalPtr()
        self._pipe = panda.GraphicsPipeSelection.getGlobalPtr().makePipe(
            "TinyOffscreenGraphicsPipe", "p3tinydisplay"
        )
        self._buffer: Any = None
        self._root = panda.NodePath("root")
        self._static = self._root.attachNewNode("static")
        self._eyes: list[panda.NodePath] = []
        self._skies: list[panda.NodePath] = []
        self._movers: list[list[panda.NodePath]] = [[] for _ in self.cameras]

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffer and the scene."""
        if self._buffer is not None:
            self._engine.removeWindow(self._buffer)
            self._buffer = None
        self._root.removeNode()

    def open(self, scene: Drawable) -> None:
        """Load a scene in place of the current one."""
        if self.scene is None or self.scene.town != scene.town:
            self._make_buffer(scene)
        self.scene = scene
        self._static.removeNode()
        self._static = self._root.attachNewNode("static")
        textures = {name: _texture(name, picture) for name, picture in scene.textures.items()}
        # Fix the order of drawing. By default panda3d orders states by their memory address, so
        # where two surfaces have the same depth the picture would depend on what this process drew
        # before.
        for number, mesh in enumerate(scene.meshes):
            node = self._static.attachNewNode(_mesh_node(mesh))
            node.setTexture(textures[mesh.texture])
            if mesh.texture in FLAT:
                # Flat and below everything else: painted in order, without a depth test.
                node.setBin("background", FLAT[mesh.texture] * ORDER + number)
                node.setDepthWrite(False)
                node.setDepthTest(False)
            else:
                node.setBin("fixed", number)
        self._buffer.setClearColor(_colour(scene.town.zenith))
        movers = [_mesh_node(vehicle.mesh) for vehicle in scene.vehicles]
        for idx in range(len(self.cameras)):
            self._skies[idx].removeNode()
            self._skies[idx] = self._root.attachNewNode(
                _mesh_node(sky_mesh(scene.seed, scene.town))
            )
            self._skies[idx].setBin("background", 0)
            self._skies[idx].setDepthWrite(False)
            self._skies[idx].setDepthTest(False)
            for node in self._movers[idx]:
                node.removeNode()
            self._movers[idx] = [self._root.attachNewNode(mover.makeCopy()) for mover in movers]
            for number, node in enumerate(self._movers[idx]):
                node.setTexture(textures["things"])
                node.setBin("fixed", ORDER + number)
            for node in (self._skies[idx], *self._movers[idx]):
                # Cameras have instants of their own, so each has its own copy of everything that
                # moves.
                node.hide(panda.BitMask32.allOn())
                node.showThrough(panda.BitMask32.bit(idx))

    def frames(self, times_s: np.ndarray) -> Iterator[np.ndarray]:
        """The rig's pictures, one after another.

        Args:
            times_s: (T,) s for all cameras, or (T, cameras) with each camera's own instants.

        Yields:
            (cameras, height, width, 3) uint8 RGB.
        """
        if self.scene is None:
            raise ValueError("no scene is open")
        times_s = np.asarray(times_s, np.float64)
        if times_s.ndim == 1:
            times_s = np.repeat(times_s[:, None], len(self.cameras), axis=1)
        by_camera = [(camera.name, times_s[:, idx]) for idx, camera in enumerate(self.cameras)]
        eyes = np.stack([self.scene.camera_poses(*one) for one in by_camera], axis=1)
        others = np.stack([self.scene.vehicle_poses(times) for _, times in by_camera], axis=1)
        others[..., 2] = np.degrees(others[..., 2])
        # panda3d: x right, y forward, z up, row vectors.
        axes = eyes[..., :3, [0, 2, 1]] * (1, 1, -1)
        for time_idx in range(len(times_s)):
            for idx in range(len(self.cameras)):
                axis, place = axes[time_idx, idx], eyes[time_idx, idx, :3, 3]
                matrix = panda.LMatrix4f(*axis[:, 0], 0, *axis[:, 1], 0, *axis[:, 2], 0, *place, 1)
                self._eyes[idx].setMat(matrix)
                self._skies[idx].setPos(*place)
                for node, (x, y, yaw) in zip(
                    self._movers[idx], others[time_idx, idx].tolist(), strict=True
                ):
                    node.setPosHpr(x, y, 0, yaw, 0, 0)
            self._buffer.setActive(True)
            self._engine.renderFrame()
            self._buffer.setActive(False)
            yield self._gather()

    def _gather(self) -> np.ndarray:
        drawn = np.frombuffer(self._target.getRamImage(), np.uint32)
        parts = drawn[self._take]
        # The mean of four, all four channels at once: two low bits a channel are dropped first.
        mean = (parts >> 2) & np.uint32(0x3F3F3F3F)
        mean = mean[0] + mean[1] + mean[2] + mean[3]
        bgra = mean.view(np.uint8).reshape(len(self.cameras), self.height, self.width, 4)
        return bgra[..., 2::-1]

    def _make_buffer(self, scene: Drawable) -> None:
        """A buffer with a region for each camera, and the indices of the gather."""
        if self._buffer is not None:
            self._engine.removeWindow(self._buffer)
            for node in (*self._eyes, *self._skies):
                node.removeNode()
        self.lenses = {
            camera.name: make_lens(camera, scene.town, self.width, self.height)
            for camera in self.cameras
        }
        rasters = []
        for camera in self.cameras:
            lens = self.lenses[camera.name]
            wide = lens.max_angle > math.radians(50)
            rasters.append(Raster.of(lens, WIDE_DENSITY if wide else NARROW_DENSITY))
        places, buffer_width, buffer_height = pack(rasters)
        properties = panda.FrameBufferProperties()
        properties.setRgbaBits(8, 8, 8, 8)
        properties.setDepthBits(24)
        self._buffer = self._engine.makeOutput(
            self._pipe,
            "rig",
            0,
            properties,
            panda.WindowProperties.size(buffer_width, buffer_height),
            panda.GraphicsPipe.BFRefuseWindow,
        )
        self._buffer.setActive(False)
        self._target = panda.Texture("rig")
        self._buffer.addRenderTexture(self._target, panda.GraphicsOutput.RTMCopyRam)
        self._eyes, self._skies, takes = [], [], []
        for idx, (camera, raster, (left, top)) in enumerate(
            zip(self.cameras, rasters, places, strict=True)
        ):
            region = self._buffer.makeDisplayRegion(
                left / buffer_width,
                (left + raster.width) / buffer_width,
                1 - (top + raster.height) / buffer_height,
                1 - top / buffer_height,
            )
            lens = panda.PerspectiveLens()
            lens.setFilmSize(raster.width, raster.height)
            lens.setFocalLength(raster.focal)
            tele = self.lenses[camera.name].max_angle < math.radians(30)
            lens.setNearFar(NEAR_M, TELE_FAR_M if tele else FAR_M)
            node = panda.Camera(camera.name, lens)
            node.setCameraMask(panda.BitMask32.bit(idx))
            eye = self._root.attachNewNode(node)
            region.setCamera(eye)
            self._eyes.append(eye)
            self._skies.append(self._root.attachNewNode("sky"))
            # The RAM image starts with the bottom row.
            rows = buffer_height - 1 - (top + raster.rows)
            takes.append(rows * buffer_width + left + raster.cols)
        self._take = np.stack(takes, axis=1)


def _colour(rgb: tuple[int, int, int]) -> panda.LVecBase4f:
    return panda.LVecBase4f(rgb[0] / 255, rgb[1] / 255, rgb[2] / 255, 1)


def _texture(name: str, picture: np.ndarray) -> panda.Texture:
    texture = panda.Texture(name)
    height, width = picture.shape[:2]
    texture.setup2dTexture(width, height, panda.Texture.TUnsignedByte, panda.Texture.FRgb)
    texture.setRamImage(np.ascontiguousarray(picture[..., ::-1]).tobytes())
    texture.setMinfilter(panda.SamplerState.FTNearestMipmapNearest)
    texture.setMagfilter(panda.SamplerState.FTNearest)
    return texture


def _mesh_node(mesh: Mesh) -> panda.GeomNode:
    """A mesh as panda3d's interleaved vertices: position, colour, texture coordinates."""
    layout = panda.GeomVertexFormat.getV3c4t2()
    rows = np.empty(
        len(mesh.points), np.dtype([("point", "<f4", 3), ("colour", "u1", 4), ("uv", "<f4", 2)])
    )
    rows["point"], rows["uv"] = mesh.points, mesh.uv
    rows["colour"][:, :3], rows["colour"][:, 3] = mesh.colours, 255
    data = panda.GeomVertexData("mesh", layout, panda.Geom.UHStatic)
    data.uncleanSetNumRows(len(rows))
    view = memoryview(data.modifyArray(0)).cast("B")
    view[:] = rows.tobytes()
    primitive = panda.GeomTriangles(panda.Geom.UHStatic)
    primitive.setIndexType(panda.Geom.NTUint32)
    indices = primitive.modifyVertices()
    indices.uncleanSetNumRows(mesh.triangles.size)
    view = memoryview(indices).cast("B")
    view[:] = mesh.triangles.astype("<u4").tobytes()
    geom = panda.Geom(data)
    geom.addPrimitive(primitive)
    node = panda.GeomNode("mesh")
    node.addGeom(geom)
    return node


def picture(
    scene: Scene,
    time_s: float,
    width: int = 480,
    height: int = 270,
    cameras: Sequence[Camera] = CAMERAS,
) -> np.ndarray:
    """One instant of a scene at any size, for documentation.

    Returns:
        (cameras, height, width, 3) uint8 RGB.
    """
    with Renderer(width, height, cameras) as renderer:
        renderer.open(scene)
        return next(renderer.frames(np.array([time_s]))).copy()
