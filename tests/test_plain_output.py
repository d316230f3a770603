"""What commands print where no person looks on: lines, any locale, any stream, `--json` always."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avomni_lib.__main__ import main
from avomni_lib.notebook.run import pipeline
from avomni_lib.plan import Plan
from avomni_lib.training.forecast import estimate

REAL = "params/mi300x.yaml"
AVOMNI = [sys.executable, "-m", "avomni_lib"]
# Longer than a terminal is wide, with what rich would take for markup and for a face.
LONG = "clips [x] of [/red] a:car:b " + "and so on, " * 14 + "to the end"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def params(tmp_path: Path) -> str:
    path = tmp_path / "run [x].yaml"
    outputs = tmp_path / "an [x] :car: folder of outputs" / ("long" * 30)
    values = {"extends": REAL, "run": {"name": "test", "outputs_dir": str(outputs)}}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def shell(line: str, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash in which $A is the command."""
    avomni = f'A() {{ {shlex.join(AVOMNI)} "$@"; }}\nset -o pipefail\n'
    return subprocess.run(
        ["bash", "-c", avomni + line],
        env=os.environ | {"COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
    )


def printed(capsys, *words: str) -> str:
    """What a command of this process writes to stdout."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_status_is_a_table_in_a_terminal_and_else_a_line_a_stage(params, capsys, monkeypatch):
    lines = printed(capsys, "status", params)
    told = json.loads(printed(capsys, "status", params, "--json"))
    assert ":car:" in told["run"] and len(told["run"]) > 140
    assert told["run"] in lines.splitlines()[0] and "\x1b" not in lines and lines.isascii()
    rows = [line for line in lines.splitlines() if re.match(r"0\d_\w+  ", line)]
    for row, line in zip(told["stages"], rows, strict=True):
        assert line.startswith(f"{row['stage']}  ") and line.endswith(f"  {row['reason']}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    assert printed(capsys, "status", params) == lines
    monkeypatch.setenv("TERM", "xterm-256color")
    colourful = printed(capsys, "status", params)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(capsys, "status", params)
    assert "\x1b[" in colourful and "\x1b" not in plain
    for text in (plain, re.sub(r"\x1b\[[0-9;]*m", "", colourful)):
        joined = re.sub(r"[\s│┃]", "", text)
        assert "┃" in text and "an[x]:car:folderofoutputs" in joined, "nothing is cut off"
        assert "whatthesourceholds" in joined and "…" not in text


def test_words_of_stages_stand_as_they_are_and_json_has_stdout_for_itself(
    monkeypatch, capsys, params
):
    def outcomes(p, stages, *, force, dry_run):
        print("2026-01-01 00:00:00  ETL: 100 clips")
        yield pipeline.Outcome("01_audit", "ran", LONG, 1.0, {})
        yield pipeline.Outcome("05_train", "ran", "two\nlines", 1.0, {"headline": LONG})

    monkeypatch.setattr(pipeline, "run", outcomes)
    said = printed(capsys, "run", params)
    assert f"01_audit: ran ({LONG})\n" in said
    assert re.search(rf"^05_train  ran  1        {re.escape(LONG)}$", said, re.MULTILINE)
    assert main(["run", params, "--json"]) == 0
    as_json = capsys.readouterr()
    assert json.loads(as_json.out)["stages"][0]["action"] == "ran"
    assert "ETL: 100 clips" in as_json.err


def test_a_locale_of_few_letters(params):
    """Also an error whose words the locale cannot hold."""
    name = shlex.quote(params)
    for line in (f"A status {name}", f"A plan {name} --json"):
        plain, here = (shell(line, **env) for env in (ASCII, {}))
        assert plain.returncode == here.returncode and "Traceback" not in plain.stderr
        assert plain.stdout.isascii() and bool(plain.stdout) == bool(here.stdout)
        if "--json" in line:
            assert json.loads(plain.stdout) == json.loads(here.stdout)
    wrong = shell(f"A status {name} --set 'run.name=×/×' --json", **ASCII)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert json.loads(wrong.stdout)["error"]["what"]


def test_letters_in_a_path_that_the_locale_cannot_name(tmp_path):
    path = tmp_path / "run.yaml"
    outputs = str(tmp_path / "Läufe")
    values = {"extends": REAL, "run": {"name": "x", "outputs_dir": outputs}}
    path.write_text(yaml.safe_dump(values), "utf-8")
    for command in ("status", "run --only 01_audit --params"):
        done = shell(f"A {command} {path} --json", **ASCII)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
        told = json.loads(done.stdout)
        assert told.get("run", "").startswith(outputs) or "PYTHONUTF8" in told["error"]["fix"]


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(streams, params):
    command = "run --dry-run" if streams == ">&-" else "status --json"
    done = shell(f"A {command} {shlex.quote(params)} {streams}")
    assert (done.returncode, done.stderr) == (0, "")
    if ">&-" not in streams.replace("2>&-", ""):
        assert done.stdout


@pytest.mark.parametrize("command", ["status --json", "plan"])
def test_stdout_on_a_full_disk_is_one_line(command, params):
    done = shell(f"A {command} {shlex.quote(params)} > /dev/full")
    assert done.returncode == 1
    assert re.match(r"error: .*No space left on device", done.stderr)
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("command", "rest"),
    [("status", "| head -1"), ("plan --json", "| true"), ("run --dry-run", "2>&1 | true")],
)
def test_a_reader_that_has_seen_enough(command, rest, params):
    done = shell(f"A {command} {shlex.quote(params)} {rest}")
    assert done.stderr == "" and done.returncode in (0, 1)


# --json


def test_what_nobody_has_foreseen_names_a_file_with_its_traceback(capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by [nought]\nin two lines")

    monkeypatch.setattr(estimate, "plan_run", broken)
    assert main(["plan", REAL, "--json"]) == 1
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["what"] == "unexpected ZeroDivisionError: by [nought] in two lines"
    assert "Traceback" not in said.err and "broken" not in said.err
    log = Path(error["where"].removeprefix("the traceback is in "))
    assert "Traceback" in log.read_text() and "in broken" in log.read_text()
    log.unlink()


def test_figures_that_are_no_number_are_null(capsys, monkeypatch):
    figures = {"loss": float("nan"), "rate": [float("inf"), 1.5]}
    monkeypatch.setattr(estimate, "plan_run", lambda p: Plan("a plan", [], [], figures))
    told = json.loads(printed(capsys, "plan", REAL, "--json"), parse_constant=pytest.fail)
    assert (told["loss"], told["rate"]) == (None, [None, 1.5])
