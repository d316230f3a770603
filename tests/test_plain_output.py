"""What commands print where no person looks on: lines, any locale, any stream, `--json` always."""

from __future__ import annotations

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

from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.etl.cache import memmap
from avomni_lib.evaluation import comparison
from avomni_lib.notebook.run import pipeline, runs
from avomni_lib.notebook.run.stages import STAGES
from avomni_lib.plan import Plan
from avomni_lib.training.doctor import doctor
from avomni_lib.training.export import merge
from avomni_lib.training.fit import job
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


def in_a_terminal(arguments: list[str], **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"} | environment
    with subprocess.Popen(
        [*AVOMNI, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        except OSError:  # its other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def assert_plain(text: str, folder: str) -> None:
    """No colour, no frame, and a row a stage on one line however long."""
    assert "\x1b" not in text and text.isascii()
    assert re.findall(r"^(0\d_\w+)  ", text, re.MULTILINE) == [stage.name for stage in STAGES]
    assert folder in text.splitlines()[0]


def test_status_in_a_pipe_or_a_terminal_that_can_only_print_is_a_line_a_stage(params):
    name = shlex.quote(params)
    done, as_json = (
        shell(f"A status {name} | cat"),
        json.loads(shell(f"A status {name} --json").stdout),
    )
    assert ":car:" in as_json["run"] and len(as_json["run"]) > 140
    assert done.returncode == 0
    assert_plain(done.stdout, as_json["run"])
    for row in as_json["stages"]:
        assert re.search(rf"^{row['stage']}  .*  {re.escape(row['reason'])}$", done.stdout, re.M)
    assert in_a_terminal(["status", params], TERM="dumb") == done.stdout


def test_no_color_is_a_table_without_colour(params):
    shown = in_a_terminal(["status", params], NO_COLOR="1")
    assert "\x1b" not in shown and "┃" in shown
    colourful = in_a_terminal(["status", params])
    assert "\x1b[" in colourful and "┃" in colourful
    for text in (shown, re.sub(r"\x1b\[[0-9;]*m", "", colourful)):
        joined = re.sub(r"[\s│┃]", "", text)
        assert "an[x]:car:folderofoutputs" in joined, "nothing is cut off"
        assert "whatthesourceholds" in joined and "…" not in text


def test_words_of_stages_stand_as_they_are(monkeypatch, capsys, params):
    def outcomes(p, stages, *, force, dry_run):
        yield pipeline.Outcome("01_audit", "ran", LONG, 1.0, {})
        yield pipeline.Outcome("05_train", "ran", "two\nlines", 1.0, {"headline": LONG})

    monkeypatch.setattr(pipeline, "run", outcomes)
    assert main(["run", params]) == 0
    said = capsys.readouterr().out
    assert f"01_audit: ran ({LONG})\n" in said
    assert re.search(rf"^05_train  ran  1        {re.escape(LONG)}$", said, re.MULTILINE)


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


# What each command calls to do its work.
WORK = {
    "run": (pipeline, "run"),
    "status": (runs, "states"),
    "plan": (estimate, "plan_run"),
    "doctor": (doctor, "examine"),
    "verify": (memmap, "verify"),
    "compare": (comparison, "compare"),
    "stop": (job, "at_work"),
    "export": (merge, "merge"),
}


@pytest.mark.parametrize("name", WORK)
def test_what_nobody_has_foreseen_names_a_file_with_its_traceback(name, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by [nought]\nin two lines")

    monkeypatch.setattr(*WORK[name], broken)
    demo = str(files.PROJECT_ROOT / "params" / "demo.yaml")
    arguments = {"verify": ["a"], "compare": ["a", "b"]}.get(name, [demo])
    assert main([name, *arguments, "--json"]) == 1
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
    assert main(["plan", str(files.PROJECT_ROOT / "params" / "demo.yaml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (printed["loss"], printed["rate"]) == (None, [None, 1.5])
