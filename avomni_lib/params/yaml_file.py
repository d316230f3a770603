"""Strict reading of params files and of `--set`: values that YAML would reinterpret are refused.

YAML 1.1 reads `010` as 8, `12:30` as 750 and `no` as false, and silently keeps the last of two
equal keys. Here each of these is a mistake, reported with its line. Accepted values mean the same
to papermill, whose reader is more lenient.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import earlier_keys

PARAMS_DIR = files.PROJECT_ROOT / "params"
MAX_CHARACTERS = 1_000_000
TAG = "tag:yaml.org,2002:"
# How a plain value has to be written so that every YAML reader reads it the same way.
PLAIN = {
    "int": r"[-+]?(0|[1-9][0-9]{0,17})",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)",
    "bool": "true|True|TRUE|false|False|FALSE",
}


class _Loader(yaml.SafeLoader):
    """Collects mistakes while it composes nodes; no value is constructed if there are any."""

    def __init__(self, text: str):
        super().__init__(text)
        self.mistakes: list[str] = []

    def note(self, node: Any, mistake: str) -> None:
        self.mistakes.append(f"line {node.start_mark.line + 1}: {mistake}")

    def raise_mistakes(self, where: str) -> None:
        if self.mistakes:
            lines = "".join(f"\n  - {line}" for line in self.mistakes)
            what = f"mistakes in the YAML: {len(self.mistakes)}{lines}"
            raise AvomniError(what, where=where, fix="correct these lines")

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            self.note(event, f"write the value out instead of *{event.anchor}")
            return yaml.ScalarNode(f"{TAG}str", "", event.start_mark, event.end_mark)
        node = super().compose_node(parent, index)
        if event.tag:
            self.note(event, f"tags such as {event.tag} are not read")
        elif isinstance(node, yaml.ScalarNode) and node.style is None:
            self.read_plain_value(node)
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return node

    def read_plain_value(self, node: yaml.ScalarNode) -> None:
        """Check a value without quotes; a date is text, as papermill reads it."""
        kind = node.tag.removeprefix(TAG)
        if kind == "timestamp":
            node.tag = f"{TAG}str"
        elif kind in PLAIN and not re.fullmatch(PLAIN[kind], node.value):
            try:
                parsed = repr(self.construct_object(node))
            except (ValueError, OverflowError):
                parsed = "no number"
            how = "write the number in plain digits or true or false, or put text in quotes"
            self.note(node, f"YAML reads {node.value} as {parsed}: {how}")
        elif kind not in (*PLAIN, "null", "str"):
            self.note(node, f"{node.value} is no value")

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != f"{TAG}str":
                name = key.value if isinstance(key, yaml.ScalarNode) else "a list or a section"
                self.note(key, f"{name} is no key: keys are names")
            elif key.value in lines:
                both = f"in lines {lines[key.value]} and {line}"
                self.mistakes.append(f"{key.value} stands twice, {both}: keep one")
            else:
                lines[key.value] = line


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested sections key by key, `above` wins; an empty section changes nothing."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(merged.get(key), Mapping) and isinstance(value, Mapping | None):
            merged[key] = merge(merged[key], value or {})
        else:
            merged[key] = value
    return merged


def read(path: Path) -> dict[str, Any]:
    """Read the sections of a params file, and `extends` if it has that key.

    Raises:
        AvomniError: the file is missing, is not a params file, or has mistakes (all with lines).
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        there = ", ".join(sorted(f"params/{file.name}" for file in PARAMS_DIR.glob("*.yaml")))
        fix = f"there are: {there}"
        raise AvomniError("params file not found", where=str(path), fix=fix) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        what = f"params file cannot be read: {error}"
        fix = "name a YAML file, saved as UTF-8"
        raise AvomniError(what, where=str(path), fix=fix) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse the text of a params file; `training.max_steps: 3` sets a key of a section.

    Raises:
        AvomniError: as `read`.
    """
    fix = "start from params/demo.yaml"
    if len(text) > MAX_CHARACTERS:
        what = f"a params file has at most {MAX_CHARACTERS:,} characters, this one has more"
        raise AvomniError(what, where=where, fix=fix)
    values = _load(text, where)[0] or {}
    if not isinstance(values, dict):
        what = f"a params file holds sections of keys, this one holds a {type(values).__name__}"
        raise AvomniError(what, where=where, fix=fix)
    nested = {name: value for name, value in values.items() if "." not in name}
    for name in values.keys() - nested.keys():
        section = name.partition(".")[0]
        if section in values:
            what = f"{section} stands twice, as a section and as {name}"
            raise AvomniError(what, where=where, fix=f"write the key below {section}")
        nested = merge(nested, _below(name.split("."), values[name]))
    return earlier_keys.renamed(nested)


def _below(names: Sequence[str], value: Any) -> dict[str, Any]:
    """Nest a value: `["a", "b"], 1` gives `{"a": {"b": 1}}`."""
    for name in reversed(names):
        value = {name: value}
    return value


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Parse `--set section.key=value` options, each key at most once, into sections of keys.

    A value without quotes, brackets or braces is taken literally: `#` and `: ` are part of it.

    Raises:
        AvomniError: one of them cannot be read, or a key is set twice.
    """
    merged: dict[str, Any] = {}
    before: dict[str, str] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            fix = "write section.key=value, as in processing.stride=4"
            raise AvomniError(f"cannot read --set {change!r}", fix=fix)
        if (dotted := ".".join(parts)) in before:
            what = f"{dotted} is set twice: --set {before[dotted]!r} and --set {change!r}"
            raise AvomniError(what, fix="keep one")
        before[dotted] = change
        merged = merge(merged, _below(parts, _value(text.strip(), f"--set {change!r}")))
    return earlier_keys.renamed(merged)


def _value(text: str, where: str) -> Any:
    if not text:
        raise AvomniError(f"no value in {where}", fix="write null to take a value away")
    if text[0] in "\"'[{":
        value, end = _load(text, where)
        if rest := text[end:].strip():
            raise AvomniError(
                f"cannot read the value of {where}: {rest} follows it",
                fix="put the whole value in quotes for YAML, as in --set 'section.key=\"a #b\"'",
            )
        return value
    loader = _Loader("")
    mark = yaml.Mark(where, 0, 0, 0, None, None)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    node = yaml.ScalarNode(tag, text, mark, mark)
    loader.read_plain_value(node)
    loader.raise_mistakes(where)
    return loader.construct_object(node)


@functools.lru_cache(maxsize=16)
def _load(text: str, where: str) -> tuple[Any, int]:
    """The value of a YAML text (shared, do not modify) and the index where it ends."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, len(text)
        loader.raise_mistakes(where)
        return loader.construct_document(node), node.end_mark.index
    except (yaml.YAMLError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        fix = "correct this line"
        raise AvomniError(f"not valid YAML: {what}", where=where, fix=fix) from None
