"""A notebook's parameters cell, and the cell that papermill injects below it.

The cell shows the keys that matter in its notebook with the demo's values. Values that a reader
changes override the file that `extends` names; unchanged ones do not, so that the demo's values
never override those of another run. Values injected by papermill always apply.

papermill writes `training = {…}` for a section and `training.max_steps = 3` for `-p
training.max_steps 3`, which fails for a dict. Of several options for one section it keeps only the
last one, before any kernel starts; the others can only be read from its command line.
"""

from __future__ import annotations

import argparse
import ast
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from avomni_lib.params import yaml_file

# The first line of papermill's injected cell, and the names that papermill itself may add there.
INJECTED, BUILT_IN = "# Parameters\n", {"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}
PARAMETERS = re.compile(r"^extends: str =", re.MULTILINE)


class _DottedNames(ast.NodeTransformer):
    """Rewrites `training.max_steps = 3` to set a key of a dict while parameters are being read."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        path = _path_of(node.targets[0]) if len(node.targets) == 1 else []
        if len(path) < 2:
            return node
        name, *keys = path
        below, made = f"(globals().get({name!r}) or {{}})", node.value
        nested: list[str] = []
        for key in keys:
            nested.append(below)
            below = f"({below}.get({key!r}) or {{}})"
        for key, old in zip(reversed(keys), reversed(nested), strict=True):
            unpacked = ast.parse(old, mode="eval").body
            made = ast.Dict(keys=[None, ast.Constant(key)], values=[unpacked, made])
        assigned = ast.Assign(targets=[ast.Name(name, ast.Store())], value=made)
        return ast.fix_missing_locations(ast.copy_location(assigned, node))


def read_dotted_names() -> None:
    """Let `training.max_steps = 3` change only this key until `Params.from_notebook` is called.

    Supports papermill's `-p training.max_steps 3`. Has no effect outside IPython.
    """
    read_plainly()
    if (shell := _shell()) is not None:
        shell.ast_transformers.append(_DottedNames())


def read_plainly() -> None:
    """Undo `read_dotted_names`."""
    if (shell := _shell()) is not None:
        shell.ast_transformers[:] = [
            transformer
            for transformer in shell.ast_transformers
            if not isinstance(transformer, _DottedNames)
        ]


def changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a parameters cell, as nested sections, whose values are not the defaults."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            kept[name] = changed(value, default)
        elif (
            name not in defaults
            or value != default
            or isinstance(value, bool) != isinstance(default, bool)
        ):
            kept[name] = value
    return kept


def injected(names: Mapping[str, Any]) -> dict[str, Any]:
    """The values that papermill's injected cell assigns; empty without such a cell.

    Args:
        names: The notebook's `globals()`.
    """
    cells = [cell for cell in names.get("In", ()) if cell.startswith(INJECTED)]
    values: dict[str, Any] = {}
    for node in ast.parse(cells[-1]).body if cells else ():
        path = _path_of(node.targets[0]) if isinstance(node, ast.Assign) else []
        if path and path[0] in names and path[0] not in BUILT_IN:
            value = names[path[0]]
            for key in path[1:]:
                value = value[key]
            for key in reversed(path):
                value = {key: value}
            values = yaml_file.merge(values, value)
    return values


def shown(names: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys in the parameters cell as it was last run."""
    cells = [cell for cell in names.get("In", ()) if PARAMETERS.search(cell)]
    cells = [cell for cell in cells if not cell.startswith(INJECTED)]
    return [
        f"{node.target.id}.{key.value!s}"
        for node in (ast.parse(cells[-1]).body if cells else ())
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(node.target, ast.Name) and isinstance(key, ast.Constant)
    ]


def command_line() -> dict[str, Any]:
    """The parameters given to the papermill command that started this kernel, merged key by key.

    Empty if another program started the kernel, or the command's files cannot be found from here.

    Raises:
        AvomniError: one of its files or texts has mistakes.
    """
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
        folders = [Path(parent.environ().get("PWD", ".")), Path(parent.cwd())] if parent else []
    except (psutil.Error, OSError):
        return {}
    place = next((i for i, word in enumerate(words[:4]) if Path(word).stem == "papermill"), None)
    return {} if place is None else _given(words[place + 1 :], folders)


def _given(words: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    options = _options(words)
    merged: dict[str, Any] = {}
    if options is None:
        return merged
    for text in options.base64:
        try:
            decoded = base64.b64decode(text).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        merged = yaml_file.merge(merged, yaml_file.parse(decoded, "papermill -b"))
    for name in options.files:
        paths = [folder / name for folder in folders]
        if path := next((path for path in paths if path.is_file()), None):
            merged = yaml_file.merge(merged, yaml_file.read(path))
    for text in options.texts:
        merged = yaml_file.merge(merged, yaml_file.parse(text, f"papermill -y {text!r}"))
    return merged


def _options(words: Sequence[str]) -> argparse.Namespace | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for short, long, name, count in (
        ("-b", "--parameters_base64", "base64", None),
        ("-f", "--parameters_file", "files", None),
        ("-y", "--parameters_yaml", "texts", None),
        ("-p", "--parameters", "typed", 2),
        ("-r", "--parameters_raw", "raw", 2),
    ):
        parser.add_argument(short, long, dest=name, nargs=count, action="append", default=[])
    try:
        return parser.parse_known_args(list(words))[0]
    except (argparse.ArgumentError, SystemExit):
        return None


def _path_of(target: ast.AST) -> list[str]:
    """The parts of a dotted name such as `download.clips.hours`; empty for anything else."""
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Attribute) and (before := _path_of(target.value)):
        return [*before, target.attr]
    return []


def _shell() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()
