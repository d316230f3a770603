"""The chain of notebooks: runs, skipped stages, eviction, copies and kills."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.notebook.run import pipeline, runs
from avomni_lib.params import Params
from tests.notebooks.small_run import avomni, command, environment, write_params

NAMES = [stage.name for stage in runs.STAGES]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A params file whose run is finished."""
    path = write_params(tmp_path_factory.mktemp("undisturbed"))
    done = avomni("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def actions(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\d\d_\w+): (\w+(?: \w+)?) \(", output, re.MULTILINE))


def digests(run_dir: Path) -> dict[str, str]:
    """sha256 of what the run made: the cache's arrays, the adapter, the answers."""
    paths = [*run_dir.glob("cache/shard_*/*"), *run_dir.glob("adapter/*.safetensors")]
    paths += run_dir.glob("06_evaluate/answers.parquet")
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


def test_every_stage_writes_a_result_and_an_error_free_notebook(params: Path):
    p = Params.from_files([params])
    for stage in runs.STAGES:
        result = runs.read_result(p, stage.name)
        assert result["stage"] == stage.name
        assert result["seconds"] > 0 and result["peak_memory_gb"] > 0
        assert result["provenance"]["packages"]["numpy"]
        assert set(result["inputs"]) == set(stage.needs)
        assert list((runs.stage_dir(p, stage.name) / "figures").glob("*.png"))
        notebook = nbformat.read(runs.executed_path(p, stage), as_version=4)
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        assert any("image/png" in o.get("data", {}) for o in outputs), stage.name
        assert not [o for o in outputs if o.output_type == "error"]
        streams = [o for o in outputs if o.output_type == "stream"]
        assert not [o.text for o in streams if o.name == "stderr"], stage.name
        text = "".join(o.text for o in streams)
        assert "0%|" not in text, "a dead progress bar"
        assert "Traceback" not in text and "without encryption" not in text


def shown_by(p: Params, stage: str, start: str) -> str:
    """The text output of the executed cell whose last line begins with `start`."""
    notebook = nbformat.read(runs.executed_path(p, runs.BY_NAME[stage]), as_version=4)
    [text] = [
        output.data.get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.splitlines()[-1].startswith(start)
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    return text


def test_executed_notebooks_show_values(params: Path):
    """A clip's poses, a window's tokens and labels, the modules that are trained."""
    p = Params.from_files([params])
    assert "papermill" in shown_by(p, "01_audit", "tables.parameters")
    assert "speed_mps" in shown_by(p, "01_audit", "clips.head()")
    assert "camera_front_wide_120fov" in shown_by(p, "02_download", "missing.groupby")
    assert "uint8" in shown_by(p, "03_etl", "frame.shape")
    driven_m, distance_m = re.findall(r"[\d.]{4,}", shown_by(p, "03_etl", "driven_m"))
    assert float(driven_m) == pytest.approx(float(distance_m), rel=1e-2)
    learned = shown_by(p, "05_train", '"".join(learned.token)')
    assert "<think>" in learned and "Avg Velocity" in learned and "Rows from" not in learned
    weights = shown_by(p, "05_train", 'lora.groupby("module")')
    trained = runs.read_result(p, "05_train")["figures"]["trainable_parameters"]
    assert trained == sum(int(number) for number in re.findall(r"(\d+)$", weights, re.MULTILINE))
    assert "max_steps" in shown_by(p, "05_train", "pd.Series(preview.arguments")
    assert "07_live/session/cameras" in shown_by(p, "07_live", "pd.DataFrame(playback.rows")
    assert "Avg Velocity" in shown_by(p, "07_live", "beside.drop")
    assert shown_by(p, "07_live", "window.shape").endswith("True)"), "the recording replays"


def test_second_run_skips_every_stage_and_refuses_to_run_concurrently(
    params: Path, capsys: pytest.CaptureFixture
):
    assert main(["run", str(params)]) == 0
    output = capsys.readouterr().out
    assert actions(output) == dict.fromkeys(NAMES, "skipped")
    assert output.count("nothing that it reads has changed") >= len(NAMES) - 1
    with files.hold(Params.from_files([params]).run_dir / pipeline.LOCK, pipeline.BUSY):
        assert main(["run", str(params)]) == 1
    assert pipeline.BUSY in capsys.readouterr().err


def test_eviction_uses_less_disk_and_makes_the_same_cache(params: Path, tmp_path: Path):
    """03 fetches and evicts the raw files; 04 and `status` report it."""
    undisturbed = Params.from_files([params])
    both = runs.read_result(undisturbed, "02_download")["figures"]["bytes"]
    both += runs.read_result(undisturbed, "03_etl")["figures"]["cache_bytes"]
    overrides = [f"run.name={tmp_path.name}", f"dataset.local_dir={tmp_path}"]
    overrides += ["download.evict_raw=true", f"download.target_size_gb={both / 1e9}"]
    changes = [word for change in overrides for word in ("--set", change)]
    first_four = ["--only", "01", "02", "03", "04"]
    done = avomni("run", str(params), *changes, *first_four)
    assert done.returncode == 0, done.stdout + done.stderr
    p = Params.from_files([params], overrides)
    assert not list(p.local_dir.rglob("*.zip"))
    figures = runs.read_result(p, "03_etl")["figures"]
    assert (
        figures["peak_bytes"] <= both and figures["bytes_evicted"] == figures["bytes_fetched"] > 0
    )
    same = [name for name in digests(undisturbed.run_dir) if name.startswith("cache")]
    assert [digests(p.run_dir)[name] for name in same] == [
        digests(undisturbed.run_dir)[name] for name in same
    ]
    stages = json.loads(avomni("status", str(params), *changes, "--json").stdout)["stages"]
    num = len(read_evicted(p))
    assert [stage["done"] for stage in stages] == [True] * 4 + [False] * 3
    assert all(f"{num} raw files evicted" in stages[n]["reason"] for n in (0, 1, 3))
    assert "it reads the cache" in stages[3]["reason"]
    executed = nbformat.read(runs.executed_path(p, runs.BY_NAME["04_tiles"]), as_version=4)
    assert "raw files are evicted" in json.dumps(executed.metadata.get("widgets", {}))


def named_paths(value: object, root: Path) -> list[str]:
    """Every string in JSON values that contains a path of this machine."""
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in named_paths(item, root)]
    if isinstance(value, list):
        return [text for item in value for text in named_paths(item, root)]
    known = (str(root), str(files.PROJECT_ROOT))
    return [value] if isinstance(value, str) and any(path in value for path in known) else []


def test_run_files_contain_no_local_paths(params: Path):
    """Except those that its params file names."""
    p = Params.from_files([params])
    allowed = {str(p.local_dir), str(files.resolve(p.run.outputs_dir))}
    checked = set()
    for path in p.run_dir.rglob("*"):
        if path.suffix == ".json" and path.name != "tokenizer.json":
            assert set(named_paths(json.loads(path.read_text()), params.parent)) <= allowed, path
            checked.add(path.name)
        elif path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            metadata = {**notebook.metadata["papermill"], "parameters": None}
            assert metadata["input_path"] == metadata["output_path"] == path.name
            assert named_paths(metadata, params.parent) == []
    assert checked > {"result.json", "record.json", "adapter_config.json", "chosen.json"}
    assert checked > {"audit.json", "split.json", "header.json", "clips.json", "training.json"}


def copied(params: Path, folder: Path) -> list[str]:
    """Command-line arguments for a copy of the run in another folder, with other dates."""
    p = Params.from_files([params])
    shutil.copytree(p.run_dir, folder / p.run.name, copy_function=shutil.copyfile)
    return [str(params), "--set", f"run.outputs_dir={folder}"]


def test_copied_run_is_done_and_usable(params: Path, tmp_path: Path):
    p, arguments = Params.from_files([params]), copied(params, tmp_path / "laptop")
    stages = json.loads(avomni("status", *arguments, "--json").stdout)["stages"]
    assert [stage["stage"] for stage in stages if not stage["done"]] == []
    done = avomni("run", *arguments, "--only", "06", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    moved = Params.from_files([params], [arguments[-1]])
    answers = [run.run_dir / "06_evaluate" / "answers.parquet" for run in (p, moved)]
    assert answers[0].read_bytes() == answers[1].read_bytes()
    exported = avomni("export", *arguments, "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["score"] == runs.read_result(moved, "06_evaluate")["figures"]


def test_force_does_not_score_an_adapter_on_a_different_cache(params: Path, tmp_path: Path):
    """The cache is rebuilt at another rate; 05's own parameters do not change."""
    arguments = copied(params, tmp_path / "run")
    arguments += ["--set", "processing.sample_hz=5", "--set", "processing.sequence_length=8"]
    arguments += ["--set", "vision.window_size=8"]
    done = avomni("run", *arguments, "--only", "03")
    assert done.returncode == 0, done.stdout + done.stderr
    refused = avomni("run", *arguments, "--only", "06")
    assert refused.returncode == 1
    assert "06_evaluate needs what 05_train makes, and 05_train is not done" in refused.stderr
    forced = avomni("run", *arguments, "--only", "06", "--force")
    assert forced.returncode == 1 and "Traceback" not in forced.stderr
    assert "processing.sample_hz: trained with 10.0, now 5.0" in forced.stderr
    assert "cache.sample_hz: trained with 10.0, now 5.0" in forced.stderr
    assert runs.read_result(Params.from_files([params], [arguments[2]]), "06_evaluate") is None


def test_plain_papermill_runs_a_notebook(params: Path, tmp_path: Path):
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/04_tiles.ipynb", out, "-f", params],
        capture_output=True,
        text=True,
        cwd=files.PROJECT_ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr
    assert runs.state(Params.from_files([params]), "04_tiles").done


def test_notebook_error_says_what_to_do_without_a_traceback(tmp_path: Path):
    """papermill by hand on params/mi300x.yaml: the error as the executed notebook stores it."""
    out = tmp_path / "out.ipynb"
    section = f"{{name: gate, outputs_dir: {tmp_path}}}"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/02_download.ipynb", str(out)]
        + ["-f", "params/mi300x.yaml", "-y", f"run: {section}"],
        capture_output=True,
        text=True,
        cwd=files.PROJECT_ROOT,
        env=environment(),
    )
    assert done.returncode == 1
    message = "needs what 01_audit makes"
    [error] = [
        output
        for cell in nbformat.read(out, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert error.ename == "AvomniError" and message in error.evalue
    shown = "\n".join(error.traceback)
    assert message in shown and "what to do:" in shown
    assert "File " not in shown and "pydantic" not in shown


def test_licence_is_checked_before_any_hub_request(tmp_path: Path):
    done = avomni("run", "params/mi300x.yaml", "--set", f"run.outputs_dir={tmp_path}")
    assert done.returncode == 1
    assert "dataset.license_accepted is false" in done.stderr
    assert "using NVIDIA technology" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_resumes_after_its_kernel_was_killed(params: Path):
    """Every cell of a killed kernel's notebook says `completed`; the stage is not done."""
    p = Params.from_files([params])
    process, kernel = _start_one_stage(params)
    time.sleep(1.0)
    kernel.kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and pipeline.KERNEL_LOST in stderr
    assert not runs.state(p, "04_tiles").done
    assert avomni("run", str(params)).returncode == 0
    assert runs.state(p, "04_tiles").done


def test_repeatedly_killed_run_ends_byte_identical(params: Path, tmp_path: Path):
    """kill -9 of the run with its kernels and workers, at random moments of every stage."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    moments = random.Random(seed)
    undisturbed = Params.from_files([params])
    whole_s = sum(runs.read_result(undisturbed, name)["seconds"] for name in NAMES)
    path = write_params(tmp_path)
    p = Params.from_files([path])
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            command("run", str(path)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment(),
        )
        try:
            process.wait(timeout=moments.uniform(0.1, 0.35) * whole_s)
        except subprocess.TimeoutExpired:
            _kill_tree(process)
            kills += 1
            continue
        assert process.returncode == 0
        break
    assert kills >= 2
    assert avomni("run", str(path)).returncode == 0
    assert all(state.done for state in runs.states(p))
    assert digests(p.run_dir) == digests(undisturbed.run_dir)
    assert any("adapter" in name for name in digests(p.run_dir))


def _start_one_stage(params: Path) -> tuple[subprocess.Popen, psutil.Process]:
    """A run at work on 04, in a session of its own as from a terminal, and its kernel."""
    process = subprocess.Popen(
        command("run", str(params), "--only", "04", "--force"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    return process, _wait_for_kernel(process)


def _wait_for_kernel(process: subprocess.Popen) -> psutil.Process:
    for _ in range(600):
        for child in psutil.Process(process.pid).children(recursive=True):
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                return child
        time.sleep(0.1)
    raise AssertionError("no kernel was started")


def _kill_tree(process: subprocess.Popen) -> None:
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()
