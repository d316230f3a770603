"""User code: objects that a params file names as `module:attribute`.

A module is a dotted name, never a path: `own_target` is the file own_target.py in the folder of the
params file, in the folder of the notebook, in notebooks/ or notebooks/examples/, or else an
installed module. It is a single file, so that its hash covers all of it. `find` runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
REFERENCE = re.compile(rf"({_NAME}(?:\.{_NAME})*)(?<!\.py):({_NAME})", re.ASCII)
LONGEST = 1_000_000  # bytes of a module
# Environment variable with the folders of params files and notebooks; child processes inherit it.
FOLDERS = "AVOMNI_CODE_FOLDERS"
_loaded: dict[tuple[Path, str], types.ModuleType] = {}


@dataclass(frozen=True)
class UserModule:
    """A module that was located but not executed.

    Attributes:
        reference: `module:attribute`.
        path: The module's file.
        content: The file's bytes.
        is_installed: Whether it is imported from Python's import path.
    """

    reference: str
    path: Path
    content: bytes
    is_installed: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def is_reference(value: Any) -> bool:
    """Whether a value has the form `module:attribute`."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def need_known(name: str, known: Sequence[str]) -> str:
    """Return a name that is built in or a reference to user code.

    Raises:
        ValueError: it is neither.
    """
    if name not in known and not is_reference(name):
        raise ValueError(f"choose one of {', '.join(known)}, or name module:attribute")
    return name


def look_in(folder: Path) -> None:
    """Search this folder first for modules, in this process and its children.

    Folders are kept in the environment, which kernels, training processes and torchrun inherit.
    """
    known = os.environ.get(FOLDERS, "").split(os.pathsep)
    folders = dict.fromkeys([str(Path(folder).resolve()), *filter(None, known)])
    os.environ[FOLDERS] = os.pathsep.join(folders)


def find(reference: str, where: str) -> UserModule:
    """Locate and read the module's file without running it.

    Args:
        where: The parameter that names it.

    Raises:
        AvomniError: there is none, its name is already taken by another module, or it cannot be
            read.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise AvomniError(
            f"{reference!r} does not name an object of a module",
            where=where,
            fix="write module:attribute, as own_target:TARGET; a path is no module",
        )
    module, inside = match[1], match[1].replace(".", "/") + ".py"
    installed = _installed(module)
    path = next((folder / inside for folder in _folders() if (folder / inside).is_file()), None)
    is_other = path and installed and not path.samefile(installed)
    if path and (module.split(".")[0] in sys.stdlib_module_names or is_other):
        raise AvomniError(
            f"there is a module {module!r} already: {installed or 'of Python itself'}",
            where=f"{where}: {path}",
            fix="give the file another name",
        )
    is_installed, path = path is None, path or installed
    if path is None:
        raise AvomniError(
            f"there is no module {module!r}",
            where=f"{where}: {reference}",
            fix=f"write {inside} beside the params file or the notebook, or into notebooks/",
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AvomniError(f"cannot read a module: {error.strerror}", where=str(path)) from None
    if len(content) > LONGEST:
        raise AvomniError(f"a module has {len(content):,} bytes, {LONGEST:,} at most", where=where)
    return UserModule(reference, path, content, is_installed)


def load(reference: str, where: str) -> Any:
    """Load the object; a module whose file has changed is executed again.

    Raises:
        AvomniError: as `find`; the module raises an exception, or has no such attribute.
    """
    source = find(reference, where)
    module, attribute = reference.split(":")
    key = (source.path, source.sha256)
    if key not in _loaded:
        _loaded[key] = _run(source, module, where)
    try:
        return getattr(_loaded[key], attribute)
    except AttributeError:
        raise AvomniError(
            f"module {module!r} has no {attribute!r}",
            where=f"{where}: {source.path}",
            fix=f"define {attribute} there, or name what it defines",
        ) from None


@contextlib.contextmanager
def in_words(path: Path, where: str, what: str) -> Iterator[None]:
    """Turn exceptions of user code into an `AvomniError` with the file and the line."""
    try:
        yield
    except AvomniError:
        raise
    except (Exception, SystemExit) as error:
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = line or (lines[-1] if lines else "?")
        words = (str(error).strip().splitlines() or [""])[0]
        raise AvomniError(
            f"{what} failed with {type(error).__name__}: {words}",
            where=f"{path}, line {line} ({where})",
            fix="fix that line",
        ) from None


def guarded(call: Callable, path: Path, where: str, what: str) -> Callable:
    """Wrap a function of user code in `in_words`."""
    return in_words(path, where, what)(call)


def _run(source: UserModule, name: str, where: str) -> types.ModuleType:
    if source.is_installed:
        with in_words(source.path, where, f"importing {name}"):
            return importlib.import_module(name)
    module = types.ModuleType(name)
    module.__file__ = str(source.path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look up their module
    try:
        with in_words(source.path, where, f"importing {name}"):
            exec(compile(source.content, str(source.path), "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _folders() -> list[Path]:
    named = filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))
    notebooks = files.PROJECT_ROOT / "notebooks"
    return list(dict.fromkeys([*map(Path, named), notebooks, notebooks / "examples"]))


def _installed(module: str) -> Path | None:
    """The file of a module on Python's import path; parent packages are not executed."""
    paths, spec = None, None
    for number in range(module.count(".") + 1):
        name = ".".join(module.split(".")[: number + 1])
        spec = importlib.machinery.PathFinder.find_spec(name, paths)
        if spec is None:
            return None
        paths = spec.submodule_search_locations
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
