"""The README says what is there: parameters, files, error texts, commands."""

import re

import pytest

from avomni_lib import files, params

README = (files.PROJECT_ROOT / "README.md").read_text()
SOURCES = "\n".join(path.read_text() for path in (files.PROJECT_ROOT / "avomni_lib").rglob("*.py"))
# A message that is built over two lines of source, as it reads when it is shown.
MESSAGES = re.sub(r'"\s*\n\s*f?"', "", SOURCES)


def test_the_table_of_parameters_is_the_schemas():
    assert params.table() in README, (
        "python -c 'from avomni_lib import params; print(params.table())'"
    )


def test_pictures_and_links_exist():
    targets = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (files.PROJECT_ROOT / target).exists(), target


def errors_in_troubleshooting() -> list[str]:
    section = README.split("## Troubleshooting")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("text", errors_in_troubleshooting())
def test_troubleshooting_quotes_what_the_code_prints(text: str):
    assert text in MESSAGES


def test_there_is_troubleshooting():
    assert len(errors_in_troubleshooting()) >= 8


def test_every_make_target_named_is_there():
    makefile = (files.PROJECT_ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make (?:VENV=system )?([a-z]+)\b", README))
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {"demo", "test", "lab", "rocm"} <= named & targets
    assert named <= targets


def test_the_tree_names_only_what_is_there():
    tree = README.split("## Notebooks and package")[1].split("```")[1]
    rooms = {"dataset", "world", "etl", "training", "evaluation", "notebook"}
    for line in tree.splitlines():
        found = re.match(r"  (\w+)/ .*: ([\w, ]+)(?:;|$)", line)
        if found and found[1] in rooms and found[1] not in ("world", "notebook"):
            for name in found[2].split(", "):
                room = files.PROJECT_ROOT / "avomni_lib" / found[1]
                assert (room / f"{name}.py").exists() or (room / name).is_dir(), name
