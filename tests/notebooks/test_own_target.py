"""A target written by the example notebook, used there and in the whole chain."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from avomni_lib import files
from tests.notebooks.small_run import avomni, environment, write_params

EXAMPLE = files.PROJECT_ROOT / "notebooks" / "examples" / "own_target.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the notebook ran, on a few clips and a few steps."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE, folder)
    target = {"target": "own_target:Kmh", "heldout_windows": 4, "blind_steps": 0}
    path = write_params(folder, training=target)
    words = [sys.executable, "-m", "papermill", EXAMPLE.name, "executed.ipynb", "-f", str(path)]
    done = subprocess.run(
        [*words, "--no-progress-bar"],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment() | {"PYTHONPATH": str(files.PROJECT_ROOT)},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_example_notebook_trains_and_scores_its_target(executed: Path):
    assert (executed / "own_target.py").read_text().startswith("class Kmh:")
    run = executed / "small"
    record = json.loads((run / "adapter" / "record.json").read_text())
    assert record["target"] == "own_target:Kmh"
    assert record["target_source"] == files.sha256_file(executed / "own_target.py")
    assert record["question"].endswith("is it standing (1) or not (0)?")
    card = (run / "adapter" / "README.md").read_text()
    assert f"sha256 of its source {record['target_source']}" in card
    cells = nbformat.read(executed / "executed.ipynb", as_version=4).cells
    shown = "".join(str(cell.get("outputs")) for cell in cells)
    for figure in ("kmh_mae", "standing_mae", "match_share", "exact_share"):
        assert figure in shown


def test_example_notebook_is_short_and_has_no_outputs():
    code = [c for c in nbformat.read(EXAMPLE, as_version=4).cells if c.cell_type == "code"]
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert statistics.median(lengths) <= 6 and max(lengths) <= 12
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_chain_accepts_the_target_and_is_stale_after_an_edit(executed: Path):
    path = executed / "small.yaml"
    done = avomni("run", str(path), "--set", "run.name=chain", timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: training.target is code of your own" in done.stderr
    figures = json.loads((executed / "chain" / "06_evaluate" / "result.json").read_text())[
        "figures"
    ]
    assert {row["metric"] for row in figures["ladder"]} == {"kmh_mae"}
    page = (executed / "chain" / "06_evaluate" / "report.html").read_text()
    assert "own_target:Kmh" in page
    source = (executed / "own_target.py").read_text()
    (executed / "own_target.py").write_text(source + "# edited\n")
    status = avomni("status", str(path), "--set", "run.name=chain", "--json")
    stages = json.loads(status.stdout)["stages"]
    stale = {stage["stage"]: stage["reason"] for stage in stages if not stage["done"]}
    assert set(stale) == {"04_tiles", "05_train", "06_evaluate", "07_live"}
    assert "source of training.target changed" in stale["05_train"]
    refused = avomni(
        "run", str(path), "--set", "run.name=chain", "--only", "06", "--force", timeout_s=300
    )
    assert (
        refused.returncode == 1 and "target_source: trained with" in refused.stdout + refused.stderr
    )
