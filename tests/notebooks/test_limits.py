"""Style of the notebooks: short cells, values to look at, the parameters of the demo."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from avomni_lib import files
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params

NOTEBOOKS = sorted((files.PROJECT_ROOT / "notebooks").glob("*.ipynb"))
LONGEST_DEF = 10  # lines of a function that teaches
FORBIDDEN = [
    r"^\s*(async def|class) ",
    r"^\s*try:",
    r"!\s*pip",
    r"%pip",
    r"sys\.path",
    r"[\"']/\w",
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def code_of(cells: list) -> list[str]:
    return [cell.source for cell in cells if cell.cell_type == "code"]


def test_every_stage_has_one_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(runs.BY_NAME)


def test_code_cells_are_short(cells: list):
    lengths = [len(source.splitlines()) for source in code_of(cells)]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 21
    assert sum(lengths) <= 150


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_cells_contain_no_package_code(cells: list, pattern: str):
    for source in code_of(cells):
        assert not re.search(pattern, source, re.MULTILINE), source


def functions_of(cells: list) -> list[ast.FunctionDef]:
    nodes = [node for source in code_of(cells) for node in ast.walk(ast.parse(source))]
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


def test_functions_in_notebooks_are_short(cells: list):
    for node in functions_of(cells):
        assert node.end_lineno - node.lineno < LONGEST_DEF, node.name


def test_no_cell_is_copied_between_notebooks():
    """Except the cell that starts every notebook."""
    seen: dict[str, str] = {}
    for path in NOTEBOOKS:
        for source in code_of(nbformat.read(path, as_version=4).cells):
            if len(source.splitlines()) > 2 and "read_dotted_names" not in source:
                assert source not in seen, f"{path.stem} and {seen.get(source)}: {source}"
                seen[source] = path.stem


def test_every_code_cell_follows_a_sentence(cells: list):
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None and before.cell_type == "markdown", cell.source


def test_notebooks_follow_the_skeleton(cells: list, path: Path):
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert prose[0].startswith("# ")
    assert all(word in prose[0] for word in ("Reads", "Writes", "Takes"))
    headings = [line for text in prose for line in text.splitlines() if line.startswith("#")]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert 3 <= sum(line.startswith("## ") for line in headings) <= 8
    assert "## What came out" in headings
    assert f'runs.start(p, "{path.stem}")' in "\n".join(code_of(cells))
    assert "stage.finish(" in code_of(cells)[-1]


def sections_of(cells: list) -> dict[str, list]:
    """Heading -> the cells of its section, beginning with the heading's own cell."""
    sections: dict[str, list] = {}
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            section = sections.setdefault(cell.source.splitlines()[0], [])
        elif not sections:
            continue
        section.append(cell)
    return sections


def test_every_section_has_prose_and_shows_a_value(cells: list):
    for heading, section in sections_of(cells).items():
        prose = section[0].source.removeprefix(heading).strip()
        assert prose.endswith((".", "?", "!")) and len(prose.split()) >= 8, heading
        shows = [
            isinstance(ast.parse(cell.source).body[-1], ast.Expr)
            for cell in section
            if cell.cell_type == "code"
        ]
        assert heading == "## Set the parameters" or any(shows), f"{heading} shows nothing"


def test_every_plot_is_saved(cells: list):
    """A picture goes through `stage.save`, which also puts the banner on it."""
    for source in code_of(cells):
        drawn = [line for line in source.splitlines() if re.search(r"plots?\.\w+\(", line)]
        assert all("stage.save(" in source for line in drawn if "plots.live" not in line), source


def test_papermill_knows_every_params_section(path: Path):
    """papermill warns about a section that the parameters cell does not declare."""
    declared = papermill.inspect_notebook(path)
    extends = declared.pop("extends")
    file = "demo_drive" if path.stem == "08_drive" else "demo"
    assert (extends["inferred_type_name"], extends["default"]) == ("str", f'"params/{file}.yaml"')
    assert list(declared) == list(Params.model_fields)
    assert {parameter["inferred_type_name"] for parameter in declared.values()} == {"dict"}


def parameters_of(cells: list) -> str:
    [source] = [cell.source for cell in cells if cell.metadata.get("tags") == ["parameters"]]
    return source


def test_parameters_cell_lists_demo_values_with_comments(cells: list):
    source, shown = parameters_of(cells), {}
    exec(source, shown)
    demo = yaml.safe_load((files.PROJECT_ROOT / "params" / "demo.yaml").read_text())
    num_keys = 0
    for section in Params.model_fields:
        defaults = Params().values(section)[section]
        for key, value in shown[section].items():
            num_keys += 1
            assert value == demo[section].get(key, defaults[key]), f"{section}.{key}"
            assert value == defaults[key], "a key at its default is left to the file"
            [line] = [line for line in source.splitlines() if f'"{key}": ' in line]
            assert len(line.partition("# ")[2]) > 5, f"{section}.{key} has no comment"
    assert num_keys >= 7


def test_params_are_made_before_other_packages_are_imported(cells: list):
    code = "\n".join(code_of(cells))
    made = code.index("p = Params.from_notebook(globals())")
    imports = [match.start() for match in re.finditer(r"from avomni_lib\.(?!params)", code)]
    assert imports and made < min(imports)
    # Packages and params sections share names, so only modules are imported.
    assert not re.search(r"^(import avomni_lib|from avomni_lib import)", code, re.MULTILINE)


def test_notebooks_are_committed_without_outputs(cells: list, path: Path):
    for cell in cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    metadata = nbformat.read(path, as_version=4).metadata
    assert "widgets" not in metadata and "papermill" not in metadata
    assert metadata.kernelspec.name == "python3"


def test_commit_hook_leaves_notebooks_unchanged():
    config = yaml.safe_load((files.PROJECT_ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    words = ["nbstripout", *hooks["nbstripout"]["args"], "--verify", *map(str, NOTEBOOKS)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
