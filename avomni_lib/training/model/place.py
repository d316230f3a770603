"""Where a base model lies, by the name that `model.base_model` gives it."""

from __future__ import annotations

from avomni_lib import files

TINY, TINY_FOLDER = "tiny", files.PROJECT_ROOT / "avomni_world" / "tiny_base" / "weights"


def base_location(name: str) -> str:
    """Where it lies on this machine: the package's own folder, another folder, or a hub name."""
    if name == TINY:
        return str(TINY_FOLDER)
    folder = files.resolve(name)
    return str(folder) if folder.is_dir() else name


def base_place(name: str) -> str:
    """Where it lies, as any machine may name it: the package's own by its folder."""
    return TINY_FOLDER.relative_to(files.PROJECT_ROOT).as_posix() if name == TINY else name
