"""Output of commands outside a terminal: plain lines, any locale, closed streams, `--json`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
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
# Wider than a terminal, with text that rich would read as markup and as an emoji.
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
    """Runs a line of bash in which the function `A` is the command."""
    avomni = f'A() {{ {shlex.join(AVOMNI)} "$@"; }}\nset -o pipefail\n'
    return subprocess.run(
        ["bash", "-c", avomni + line],
        env=os.environ | {"COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
    )


def printed(capsys, *words: str) -> str:
    """What a command run in this process writes to stdout."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_status_is_a_table_in_a_terminal_and_lines_elsewhere(params, capsys, monkeypatch):
    lines = printed(capsys, "status", params)
    status = json.loads(printed(capsys, "status", params, "--json"))
    assert ":car:" in status["run"] and len(status["run"]) > 140
    assert status["run"] in lines.splitlines()[0] and "\x1b" not in lines and lines.isascii()
    rows = [line for line in lines.splitlines() if re.match(r"0\d_\w+  ", line)]
    for row, line in zip(status["stages"], rows, strict=True):
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


def test_process_detects_a_real_terminal_and_a_real_pipe(params):
    terminal, other_end = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color"}
    words = [*AVOMNI, "status", params]
    with subprocess.Popen(words, stdin=other_end, stdout=other_end, env=environment) as process:
        os.close(other_end)
        parts = []
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(terminal, 1 << 16):
                parts.append(part)
    os.close(terminal)
    table = b"".join(parts).decode()
    assert process.returncode == 0 and "\x1b[" in table and "┃" in table
    piped = shell(f"A status {shlex.quote(params)} | cat")
    assert piped.returncode == 0 and "01_audit  " in piped.stdout
    assert "\x1b" not in piped.stdout and "┃" not in piped.stdout


def test_stage_text_is_printed_verbatim_and_json_stdout_is_pure(monkeypatch, capsys, params):
    def outcomes(p, stages, *, force, dry_run):
        print("2026-01-01 00:00:00  ETL: 100 clips")
        yield pipeline.Outcome("01_audit", "ran", LONG, 1.0, {})
        yield pipeline.Outcome("05_train", "ran", "two\nlines", 1.0, {"headline": LONG})

    monkeypatch.setattr(pipeline, "run", outcomes)
    output = printed(capsys, "run", params)
    assert f"01_audit: ran ({LONG})\n" in output
    assert re.search(rf"^05_train  ran  1        {re.escape(LONG)}$", output, re.MULTILINE)
    assert main(["run", params, "--json"]) == 0
    as_json = capsys.readouterr()
    assert json.loads(as_json.out)["stages"][0]["action"] == "ran"
    assert "ETL: 100 clips" in as_json.err


def test_output_is_ascii_in_the_c_locale(params):
    """Including an error message with characters that the locale cannot encode."""
    name = shlex.quote(params)
    for line in (f"A status {name}", f"A plan {name} --json"):
        c_locale, default = (shell(line, **env) for env in (ASCII, {}))
        assert c_locale.returncode == default.returncode and "Traceback" not in c_locale.stderr
        assert c_locale.stdout.isascii() and bool(c_locale.stdout) == bool(default.stdout)
        if "--json" in line:
            assert json.loads(c_locale.stdout) == json.loads(default.stdout)
    wrong = shell(f"A status {name} --set 'run.name=×/×' --json", **ASCII)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert json.loads(wrong.stdout)["error"]["what"]


def test_non_ascii_path_in_the_c_locale_causes_no_traceback(tmp_path):
    path = tmp_path / "run.yaml"
    outputs = str(tmp_path / "Läufe")
    values = {"extends": REAL, "run": {"name": "x", "outputs_dir": outputs}}
    path.write_text(yaml.safe_dump(values), "utf-8")
    for command in ("status", "run --only 01_audit --params"):
        done = shell(f"A {command} {path} --json", **ASCII)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
        output = json.loads(done.stdout)
        assert output.get("run", "").startswith(outputs) or "PYTHONUTF8" in output["error"]["fix"]


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_commands_work_with_closed_streams(streams, params):
    command = "run --dry-run" if streams == ">&-" else "status --json"
    done = shell(f"A {command} {shlex.quote(params)} {streams}")
    assert (done.returncode, done.stderr) == (0, "")
    if ">&-" not in streams.replace("2>&-", ""):
        assert done.stdout


@pytest.mark.parametrize("command", ["status --json", "plan"])
def test_full_disk_on_stdout_is_a_one_line_error(command, params):
    done = shell(f"A {command} {shlex.quote(params)} > /dev/full")
    assert done.returncode == 1
    assert re.match(r"error: .*No space left on device", done.stderr)
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("command", "rest"),
    [("status", "| head -1"), ("plan --json", "| true"), ("run --dry-run", "2>&1 | true")],
)
def test_pipe_closed_by_its_reader_prints_no_error(command, rest, params):
    done = shell(f"A {command} {shlex.quote(params)} {rest}")
    assert done.stderr == "" and done.returncode in (0, 1)


# --json


def test_unexpected_error_names_a_file_with_the_traceback(capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by [nought]\nin two lines")

    monkeypatch.setattr(estimate, "plan_run", broken)
    assert main(["plan", REAL, "--json"]) == 1
    output = capsys.readouterr()
    error = json.loads(output.out)["error"]
    assert error["what"] == "unexpected ZeroDivisionError: by [nought] in two lines"
    assert "Traceback" not in output.err and "broken" not in output.err
    log = Path(error["where"].removeprefix("the traceback is in "))
    assert "Traceback" in log.read_text() and "in broken" in log.read_text()
    log.unlink()


def test_nan_and_infinite_figures_are_null_in_json(capsys, monkeypatch):
    figures = {"loss": float("nan"), "rate": [float("inf"), 1.5]}
    monkeypatch.setattr(estimate, "plan_run", lambda p: Plan("a plan", [], [], figures))
    output = json.loads(printed(capsys, "plan", REAL, "--json"), parse_constant=pytest.fail)
    assert (output["loss"], output["rate"]) == (None, [None, 1.5])
