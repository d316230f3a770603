"""Resolves the location of a base model from the name in `model.base_model`."""

from __future__ import annotations

from avomni_lib import files

TINY, TINY_FOLDER = "tiny", files.PROJECT_ROOT / "avomni_world" / "tiny_base" / "weights"


def base_location(name: str) -> str:
    """Location on this machine: the folder of the tiny base, another folder, or a hub name."""
    if name == TINY:
        return str(TINY_FOLDER)
    folder = files.resolve(name)
    return str(folder) if folder.is_dir() else name


def base_place(name: str) -> str:
    """Machine-independent name: the tiny base by its relative folder, others unchanged."""
    return TINY_FOLDER.relative_to(files.PROJECT_ROOT).as_posix() if name == TINY else name
