"""Arrays to panda3d's nodes: meshes, textures, the sky."""

from __future__ import annotations

import numpy as np
from panda3d import core as panda

from avomni_lib.world.scene import Scene
from avomni_lib.world.shapes import Mesh


def texture_of(name: str, picture: np.ndarray) -> panda.Texture:
    texture = panda.Texture(name)
    height, width = picture.shape[:2]
    texture.setup2dTexture(width, height, panda.Texture.TUnsignedByte, panda.Texture.FRgb)
    texture.setRamImage(np.ascontiguousarray(picture[..., ::-1]).tobytes())
    texture.setMinfilter(panda.SamplerState.FTNearestMipmapNearest)
    texture.setMagfilter(panda.SamplerState.FTNearest)
    return texture


def mesh_node(mesh: Mesh) -> panda.GeomNode:
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


def sky_node(scene: Scene, radius: float = 100.0, sides: int = 36) -> panda.GeomNode:
    """A ring around the camera: hazy ground, hills against the sky, and the sky's lower part."""
    town = scene.town
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    phases = np.random.default_rng(scene.seed).uniform(0, 2 * np.pi, 3)
    hills = 2.2 + 1.3 * np.sin(3 * turn + phases[0]) + 0.8 * np.sin(7 * turn + phases[1])
    hills = np.maximum(hills + 0.5 * np.sin(15 * turn + phases[2]), 0.4)
    flat = np.zeros(sides + 1)
    ground = (np.array(town.ground) * 0.8 + np.array(town.hills) * 0.4).clip(0, 255)
    horizon, zenith = np.array(town.horizon), np.array(town.zenith)
    levels = [(flat + 8, 0.3), (flat + 20, 0.6), (flat + 38, 0.85), (flat + 70, 1.0)]
    bands = [(flat - 40, ground, flat, ground), (flat, town.hills, hills, town.hills)]
    low, low_colour = hills, horizon
    for high, part in levels:
        colour = horizon * (1 - part) + zenith * part
        bands.append((low, low_colour, high, colour))
        low, low_colour = high, colour
    meshes = []
    for low, low_colour, high, high_colour in bands:
        ring = [
            np.stack([np.cos(turn) * radius, np.sin(turn) * radius, height], axis=-1)
            for height in (low, high)
        ]
        a = np.arange(sides)
        b = a + sides + 1
        triangles = np.concatenate([np.stack([a, b, a + 1], -1), np.stack([a + 1, b, b + 1], -1)])
        colours = np.repeat([low_colour, high_colour], sides + 1, axis=0)
        meshes.append((np.concatenate(ring), colours, triangles))
    first = 0
    parts = []
    for points, colours, triangles in meshes:
        parts.append((points, colours, triangles + first))
        first += len(points)
    points, colours, triangles = (np.concatenate(column) for column in zip(*parts, strict=True))
    return mesh_node(
        Mesh(
            points.astype(np.float32),
            colours.astype(np.uint8),
            np.zeros((len(points), 2), np.float32),
            triangles.astype(np.int32),
            "sky",
        )
    )
