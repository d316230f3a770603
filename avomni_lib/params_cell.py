"""A notebook's parameters cell, and what papermill puts below it.

papermill writes `training = {…}` for a section and `training.max_steps = 3` for `-p
training.max_steps 3`, the latter of which a dict would refuse. Of several options that name a
section it keeps the last one whole, before any kernel starts; only its command line tells.
"""

from __future__ import annotations

import argparse
import ast
import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from avomni_lib import params_yaml

# The first line of the cell that papermill adds, and what it may put there of its own.
INJECTED, BUILT_IN = "# Parameters\n", {"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}


class _DottedNames(ast.NodeTransformer):
    """`training.max_steps = 3` sets the key of a dict, as long as parameters are being read."""

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
    """From here to `Params.from_notebook`, let `training.max_steps = 3` change this key alone.

    It is for papermill's `-p training.max_steps 3`. Outside IPython it does nothing.
    """
    read_plainly()
    if (shell := _shell()) is not None:
        shell.ast_transformers.append(_DottedNames())


def read_plainly() -> None:
    """End what `read_dotted_names` began."""
    if (shell := _shell()) is not None:
        kept = [one for one in shell.ast_transformers if not isinstance(one, _DottedNames)]
        shell.ast_transformers[:] = kept


def injected_names(names: Mapping[str, Any]) -> set[str]:
    """The names that papermill's cell assigns, sections or not; none where it has put no cell."""
    cells = [cell for cell in names.get("In", ()) if cell.startswith(INJECTED)]
    if not cells:
        return set()
    assigned = [node for node in ast.parse(cells[-1]).body if isinstance(node, ast.Assign)]
    roots = [ast.walk(target) for node in assigned for target in node.targets]
    found = {node.id for nodes in roots for node in nodes if isinstance(node, ast.Name)}
    return found - BUILT_IN


def command_line() -> dict[str, Any]:
    """What the papermill command that started this kernel was given, merged key by key.

    Empty where another program started it, or its files are not to be seen from here.

    Raises:
        AvomniError: a file or text among it that `avomni run` would refuse, too.
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
        merged = params_yaml.merge(merged, params_yaml.parse(decoded, "papermill -b"))
    for name in options.files:
        paths = [folder / name for folder in folders]
        if path := next((path for path in paths if path.is_file()), None):
            merged = params_yaml.merge(merged, params_yaml.read(path))
    for text in options.texts:
        merged = params_yaml.merge(merged, params_yaml.parse(text, f"papermill -y {text!r}"))
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
    """`download.clips.hours` as its words; empty for anything else."""
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
