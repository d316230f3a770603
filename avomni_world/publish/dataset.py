"""The rendered world as a data set: upstream's layout, names and schemas, in one folder.

One process per core records clips into a work folder beside the target, one file per clip. Then
zips and tables are assembled in order and the folder is renamed. If it is killed at any moment, the
same call continues from the existing clips and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from avomni_lib import files, workers
from avomni_lib.dataset import cameras
from avomni_lib.dataset.own import layout as packed
from avomni_lib.dataset.select.forecast import world_clip_bytes, world_splits
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.params.sections import WorldParams
from avomni_lib.plan import Bar
from avomni_world.publish import layout, recording
from avomni_world.publish.attributes import has_event
from avomni_world.publish.layout import WorldClip
from avomni_world.scene import towns
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import Scene, make_scene

FORMAT = 3  # increase it when the same parameters would give different bytes


def world_clips(world: WorldParams) -> list[WorldClip]:
    """All clips of a world, chunk after chunk."""
    clips = []
    for number, split in enumerate(world_splits(world)):
        digest = hashlib.sha256(f"{world.seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        clip_id = clip_id_of(world.town, seed)
        clips.append(WorldClip(number, clip_id, seed, number // world.clips_per_chunk, split))
    return clips


def clip_id_of(town: str, seed: int) -> str:
    """The clip id of a seed's drive through a town."""
    name = hashlib.sha256(f"avomni/{town}/{seed}".encode()).digest()[:16]
    return str(uuid.UUID(bytes=name, version=4))


def scene_of(world: WorldParams, clip_id: str) -> Scene:
    """The scene that a published clip was recorded in: exact poses, and pictures of any size.

    Raises:
        AvomniError: the world has no such clip.
    """
    for clip in world_clips(world):
        if clip.clip_id == clip_id:
            return _scene(clip, world)
    raise AvomniError(f"clip {clip_id} is not in this world", where=f"dataset.world: {world}")


def _scene(clip: WorldClip, world: WorldParams) -> Scene:
    return make_scene(
        clip.seed,
        world.town,
        world.clip_seconds,
        has_event(clip.number),
        strays(clip, world),
    )


def strays(clip: WorldClip, world: WorldParams) -> bool:
    """Whether the clip's car begins out of its lane; decided by its seed."""
    return clip.seed % 10_000 < 10_000 * world.strays


def expected_bytes(world: WorldParams) -> int:
    """Estimated size of what `publish` writes, in bytes."""
    clip_bytes = sum(world_clip_bytes(world, name) for name in layout.published(world))
    return int(clip_bytes * world.num_chunks * world.clips_per_chunk)


def publish(p: Params, folder: Path, progress: type[Bar] = Bar) -> Path:
    """Write `p.dataset.world` as a data set into `folder`, or return immediately if it exists.

    Raises:
        AvomniError: another world or something else is in the folder; no such town; no room; the
            grid has a camera that the world does not render.
    """
    world, folder = p.dataset.world, Path(folder)
    shown = (camera.name for camera in cameras.grid(p.vision.cameras).cameras)
    if absent := [name for name in shown if name not in world.camera_names]:
        raise AvomniError(
            f"vision.cameras shows {', '.join(absent)}, and the world is rendered without",
            where="dataset.world.cameras",
            fix="set it to 7-cam, or to a list of all names that the grid has",
        )
    if is_published(p, folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AvomniError(
            "the folder holds something else than the world asked for",
            where=str(folder),
            fix="remove it, or publish into another folder",
        )
    towns.town(world.town)
    need = 2 * expected_bytes(world)  # the clips, and the chunks made from them
    files.need_room(folder.parent, need, "the rendered world")
    card = _card(world)
    work = folder.with_name(f".{folder.name}.{hashlib.sha256(card.encode()).hexdigest()[:12]}.work")
    work.mkdir(parents=True, exist_ok=True)
    files.sweep_partials(work)
    clips = world_clips(world)
    parts = [work / f"{clip.number:06d}.zip" for clip in clips]
    missing = [pair for pair in zip(clips, parts, strict=True) if not pair[1].exists()]
    with progress(total=len(clips), unit="clip", label="World") as bar:
        bar.update(len(clips) - len(missing))
        for clip in _record_all(missing, world):
            bar.update(1, note=clip.clip_id)
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    layout.assemble(clips, world, parts, whole)
    files.write_text(whole / "README.md", card)
    os.replace(whole, folder)
    files.fsync_folder(folder.parent)
    shutil.rmtree(work)
    return folder


def is_published(p: Params, folder: Path) -> bool:
    """Whether the folder holds exactly this world. It is moved there whole, so its card is
    proof."""
    card = Path(folder) / "README.md"
    return card.is_file() and card.read_text(encoding="utf-8") == _card(p.dataset.world)


def _record_all(missing: list[tuple[WorldClip, Path]], world: WorldParams) -> Iterator[WorldClip]:
    """Record clips in separate processes: panda3d's engine is global, and there are several
    cores."""
    jobs = [(clip, part, world) for clip, part in missing]
    with contextlib.closing(workers.run_jobs(_record, jobs, workers.num_cores())) as recorded:
        for (clip, part, _), done in recorded:
            if done is None:
                raise AvomniError(
                    f"the process that renders clip {clip.clip_id} was killed twice, usually "
                    "because memory ran out",
                    where=str(part),
                    fix="make room for it, or lower dataset.world.width and height; "
                    "run the same command again: it goes on from the clips that are there",
                )
            yield clip


@functools.cache
def _renderer(width: int, height: int, names: tuple[str, ...]) -> Renderer:
    return Renderer(width, height, [cameras.BY_NAME[name] for name in names])


def _record(job: tuple[WorldClip, Path, WorldParams]) -> bool:
    """Write one clip's part, in a worker process."""
    clip, part, world = job
    scene = _scene(clip, world)
    renderer = _renderer(world.width, world.height, world.camera_names)
    members, calibration = recording.record(scene, clip.clip_id, renderer, world.codec)
    members[layout.CALIBRATION] = json.dumps(calibration).encode()
    if scene.event:
        members[layout.EVENTS] = scene.event.json.encode()
    packed.write_zip(part, members.items())
    return True


def _card(world: WorldParams) -> str:
    """The data set's README: what it is, and the parameters that made it."""
    made_from = world.model_dump() | {"format": FORMAT}
    if not world.strays:  # keeps the bytes of worlds without strays as they were
        del made_from["strays"]
    values = json.dumps(made_from, sort_keys=True)
    return f"""---
license: mit
---
# A rendered world in the layout of nvidia/PhysicalAI-Autonomous-Vehicles

Drives through the town "{world.town}". {towns.town(world.town).about}
Rendered by AV-Omni with panda3d: no frame or figure in it comes from a recording. Countries,
months, platforms and clusters of events are dealt by chance, to have something to choose by; the
events themselves, and the labels of other road users, tell what is in the picture.

Made from: `{values}`
"""
