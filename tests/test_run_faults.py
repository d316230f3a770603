"""`run` and `status` on a faulty machine: clear errors, and the same command resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.notebook.run import pipeline, runs
from tests import folder_run
from tests.published_set import write_published_set
from tests.small_disk import mounted

AVOMNI = [sys.executable, "-m", "avomni_lib"]
STAGE = ["--only", "01_audit"]
GO_ON = "run the same command again: it goes on"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("set"), 1, 2, 1.0)


def write_params(folder: Path, published: Path, outputs: Path | None = None, **sections) -> str:
    path = folder / "run.yaml"
    values = folder_run.values(outputs or folder / "outputs", published)
    path.write_text(yaml.safe_dump({"extends": "params/demo.yaml"} | values | sections))
    return str(path)


def avomni(*arguments: str | Path, before=(), cwd=None, environment=None):
    """Runs `avomni` behind the command prefix `before`; it must end without a traceback."""
    done = subprocess.run(
        [*before, *AVOMNI, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_of(done: subprocess.CompletedProcess) -> dict[str, str | None]:
    """The error in the output of `--json`, which must also be on stderr."""
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"what", "where", "fix"}
    message = done.stderr[done.stderr.index("error: ") :]
    assert all(part in message for part in error.values() if part)
    return error


def refused(capsys, *words: str) -> dict[str, str | None]:
    """The error of a command that starts no kernel, run in this process."""
    code = main([*words, "--json"])
    output = capsys.readouterr()
    return error_of(subprocess.CompletedProcess(words, code, output.out, output.err))


def ended(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [row["action"] for row in json.loads(done.stdout)["stages"]]


# Kernels


def kernels_of(process: subprocess.Popen) -> list[psutil.Process]:
    kernels = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            if any("ipykernel_launcher" in word for word in child.cmdline()):
                kernels.append(child)
    return kernels


def test_kernel_killed_at_start_is_reported(tmp_path, published):
    """Killed at once and during its imports, which are slowed down for fast machines."""
    params = write_params(tmp_path, published)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import sys, time\nif 'ipykernel_launcher' in sys.orig_argv:\n    time.sleep(20)\n"
    )
    path = os.pathsep.join([str(slow), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [*AVOMNI, "run", params, *STAGE, "--json"]
    for seconds in (0.0, 0.3):
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
            while not (kernels := kernels_of(process)):
                assert process.poll() is None
            time.sleep(seconds)
            for kernel in kernels:
                kernel.kill()
            out, err = process.communicate(timeout=120)
        error = error_of(subprocess.CompletedProcess(command, process.returncode, out, err))
        assert pipeline.KERNEL_LOST in error["what"] and "before it could work" in error["what"]
        assert "Traceback" not in err and "01_audit.ipynb" in error["where"]
        assert GO_ON in error["fix"]
    assert ended(avomni("run", params, *STAGE, "--json")) == ["ran"]


def test_kernel_start_error_shows_the_kernels_last_output(tmp_path, published):
    """Another module has the name of the kernel's program."""
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit('no module named zmq')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    params = write_params(tmp_path, published)
    environment = {"PYTHONPATH": path}
    # The package is found before the folder with the broken kernel module.
    error = error_of(avomni("run", params, *STAGE, "--json", environment=environment))
    assert "it last said: no module named zmq" in error["what"] and GO_ON in error["fix"]


def test_kernel_uses_this_python_despite_other_kernelspecs(tmp_path, published):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "another", "language": "python"})
    )
    environment = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "JUPYTER_PREFER_ENV_PATH": "0"}
    params = write_params(tmp_path, published)
    assert ended(avomni("run", params, *STAGE, "--json", environment=environment)) == ["ran"]


def test_notebook_error_keeps_its_place_and_fix(tmp_path, published):
    params = write_params(
        tmp_path, published, dataset={"source": "folder", "local_dir": "/nowhere"}
    )
    error = error_of(avomni("run", params, *STAGE, "--json"))
    assert error["what"].startswith("01_audit: ") and "\n" not in error["what"]
    assert "/nowhere" in error["where"] and error["fix"]


# Ctrl-C


@pytest.mark.parametrize("times", [[0.1], [0.25], [0.6, 0.02], [1.2, 0.3], [3.0, 0.3]], ids=str)
def test_ctrl_c_at_any_time_prints_one_sentence(tmp_path, published, times):
    """Including during imports, and when pressed again while the command ends."""
    params = write_params(tmp_path, published)
    command = [*AVOMNI, "run", params, *STAGE]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as run:
        # No code of ours can handle the signal before Python has started.
        while sum(psutil.Process(run.pid).cpu_times()[:2]) < 0.05:
            time.sleep(0.002)
        for wait in times:
            time.sleep(wait)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGINT)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert stderr == "stopped; run the same command again: it goes on from here\n"


# Disks


def test_read_only_outputs_are_reported(tmp_path, published):
    params = write_params(tmp_path, published)
    with mounted(tmp_path / "outputs", "ro") as (enter, _):
        error = error_of(avomni("run", params, "--json", before=enter))
        assert "the file system is read-only" in error["what"]
        assert str(tmp_path / "outputs") in error["where"]
        assert "run.outputs_dir" in error["fix"] and GO_ON in error["fix"]
        for command in (["status"], ["plan"], ["run", "--dry-run"]):
            done = avomni(*command, params, before=enter)
            assert done.returncode == 0 and done.stdout


def test_status_works_for_a_finished_run_on_a_read_only_disk(tmp_path, published, capsys):
    params = write_params(tmp_path, published)
    assert ended(avomni("run", params, *STAGE, "--json")) == ["ran"]
    status = avomni("status", params).stdout
    with mounted(tmp_path / "elsewhere", "size=1m") as (enter, _):
        readonly = ["sh", "-c", 'mount -o bind,ro "$0" "$0" && exec "$@"', tmp_path / "outputs"]
        before = [*enter, *readonly]
        assert avomni("status", params, before=before).stdout == status
        forced = error_of(avomni("run", params, *STAGE, "--force", "--json", before=before))
        assert "the file system is read-only" in forced["what"]
    result = tmp_path / "outputs" / "test" / "01_audit" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"figures": {"num_clips": []}}))
    assert main(["run", params, *STAGE]) == 0
    assert "its figures are damaged" in capsys.readouterr().out, "which stops nothing"
    result.write_text("{}")
    assert ended(avomni("run", params, *STAGE, "--json")) == ["ran"], "a damaged result"


def test_full_disk_during_papermill_is_reported(tmp_path, published):
    params, outputs = write_params(tmp_path, published), shlex.quote(str(tmp_path / "outputs"))
    with mounted(tmp_path / "outputs", "size=4k") as (enter, _):
        for size in ("64k", "9m"):
            error = error_of(avomni("run", params, *STAGE, "--json", before=enter))
            assert "no room left on the disk" in error["what"]
            assert str(tmp_path / "outputs") in error["where"]
            assert "free some space" in error["fix"] and GO_ON in error["fix"]
            resize = f"mount -o remount,size={size} {outputs}"
            subprocess.run([*enter, "sh", "-c", resize], check=True)
        assert ended(avomni("run", params, *STAGE, "--json", before=enter)) == ["ran"]


@pytest.mark.parametrize("place", ["a file", "below a file", "a link to itself"])
def test_outputs_dir_that_is_not_a_folder_is_reported(tmp_path, published, place, capsys):
    outputs = tmp_path / "place"
    if place == "a link to itself":
        outputs.symlink_to(outputs)
    else:
        outputs.write_text("")
    params = write_params(tmp_path, published, outputs / "x" if "below" in place else outputs)
    error = refused(capsys, "run", params, *STAGE)
    assert str(outputs) in error["where"] and error["fix"]
    assert not error["what"].startswith("unexpected")
    assert main(["status", params]) in (0, 1)


# Notebooks


DAMAGED = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "another file": lambda text: '{"a": 1}',
    "a list": lambda text: "[]",
    "no cells": lambda text: text.replace('"cells"', '"bells"'),
    "unknown cell type": lambda text: text.replace('"cell_type": "code"', '"cell_type": "dish"'),
    "not UTF-8": lambda text: "\udcff\udcfe" + text,
    "no parameters cell": lambda text: text.replace('"parameters"', '"settings"'),
}


@pytest.mark.parametrize("damage", [*DAMAGED, "missing"])
def test_damaged_notebook_error_names_the_file(tmp_path, published, damage, capsys, monkeypatch):
    params = write_params(tmp_path, published)
    notebook = tmp_path / "notebooks" / "01_audit.ipynb"
    notebook.parent.mkdir()
    if damage in DAMAGED:
        intact = (files.PROJECT_ROOT / "notebooks" / notebook.name).read_text()
        notebook.write_text(DAMAGED[damage](intact), errors="surrogateescape")
    monkeypatch.setattr(runs.Stage, "notebook", notebook)
    error = refused(capsys, "run", params, *STAGE)
    assert error["where"] == str(notebook) and "git checkout" in error["fix"]
