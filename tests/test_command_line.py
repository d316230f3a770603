"""`avomni`, as `python -m avomni_lib`: what it prints for people and machines, and its codes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import avomni_lib
from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.cli import EXAMPLES, EXIT_CODES
from avomni_lib.etl.cache.verify import VerifiedCache
from avomni_lib.evaluation.comparison import Compared
from avomni_lib.notebook.pages import terminal
from avomni_lib.notebook.run import pipeline
from avomni_lib.plan import Plan
from avomni_lib.training.doctor.findings import Finding, Report
from avomni_lib.training.forecast import estimate
from tests import folder_run
from tests.commands import parsed
from tests.published_set import write_published_set

DEMO = str(files.PROJECT_ROOT / "params" / "demo.yaml")
LINES = [line.strip() for lines in EXAMPLES.values() for line in lines.splitlines() if line]
AVOMNI = Path(sys.executable).with_name("avomni")
VERIFIED = VerifiedCache(2, 10, 3_500_000, 1_234, 56_789, {"train": 1_000, "val": 4, "test": 230})
KEYS = ("a", "b", "difference", "low", "high")
COMPARED = Compared(
    {
        "runs": {"A": "outputs/a", "B": "outputs/[b]"},
        "targets": {"A": "summary_v1", "B": "summary_v1"},
        "num_windows": 1_234,
        "num_clips": 40,
        "num_windows_only_in": {"A": 5, "B": 0},
        "warnings": ["the runs were split differently"],
        "rows": {
            "adapted": {
                "speed_mae_mps": dict(zip(KEYS, (2.0, 1.5, -0.5, -0.7, -0.3), strict=True)),
                "exact_share": dict(zip(KEYS, (0.9, 0.9, 0.0, -0.1, 0.1), strict=True)),
            }
        },
    }
)
REPORT = Report(
    (
        Finding("torch", "ok", "torch 2.13", "never shown"),
        Finding("disk", "wrong", "1 GB [free]", "it fills up", "rm -rf outputs/old"),
    )
)
PLAN = Plan("what run x takes", [("clips", "12 [of 20]", "8 s each")], ["few steps"])


@pytest.fixture
def params_file(tmp_path: Path) -> str:
    """A run over a small set that lies in a folder."""
    published = write_published_set(tmp_path / "published", 1, 2, 1.0)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(folder_run.values(tmp_path / "outputs", published)))
    return str(path)


@pytest.mark.parametrize("line", LINES)
def test_every_example_of_the_help_is_a_command(line: str):
    command = shlex.split(re.split(r"  +", line)[0])
    assert command[:3] == ["python", "-m", "avomni_lib"]
    assert parsed(command[3:])[0] == command[3]


def test_help_names_the_commands_and_exit_codes():
    done = subprocess.run([sys.executable, "-m", "avomni_lib", "--help"], capture_output=True)
    assert done.returncode == 0
    text = done.stdout.decode()
    for word in (*EXAMPLES, *EXIT_CODES.splitlines(), "--install-completion"):
        assert word in text
    assert not re.search("\x1b|[─│╭]", text), "plain text"


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_command_has_its_own_help_with_an_example(name: str, capsys: pytest.CaptureFixture):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out
    assert f"python -m avomni_lib {name} " in lines and "--json" in lines
    assert all(line in lines for line in EXIT_CODES.splitlines())


def test_limit_takes_at_most_so_many_chunks(capsys: pytest.CaptureFixture):
    figures = []
    for limit in ([], ["--limit", "1"], ["--limit", "9"]):
        assert main(["plan", DEMO, "--json", *limit]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert [told["num_chunks"] for told in figures] == [2, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["plan", DEMO, "--limit", "0"], "--limit"),
        (["plan", DEMO, "--limit", "-1"], "--limit"),
        (["plan", DEMO, "--limit", "two"], "--limit"),
        (["fly", DEMO], "No such command 'fly'"),
        (["compare", "outputs/a"], "'runs' takes 2 values"),
        ([], "Missing command"),
        (["run", "--only"], "--only"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_2(wrong: list[str], named: str, capsys: pytest.CaptureFixture):
    assert main(wrong) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("error: ") and "--help" in error


def test_an_option_takes_several_values_at_once():
    line = ["run", "a.yaml", "--only", "01", "02", "--params", "b.yaml", "c.yaml", "--force"]
    _, values = parsed(line)
    assert values["only"] == ["01", "02"] and values["force"]
    assert (values["paths"], values["more"]) == (["a.yaml"], ["b.yaml", "c.yaml"])


MISTAKES = [
    ["plan", "params/nowhere.yaml"],
    ["status", DEMO, "--set", "processing.strid=4"],
    ["run", DEMO, "--only", "07_fly"],
    ["run"],
    ["verify", "outputs/nowhere"],
    ["compare", "outputs/nowhere", "outputs/neither"],
    ["export", DEMO, "--set", "run.name=untrained"],
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_a_mistake_is_1_with_one_message_and_no_traceback(
    mistake: list[str], capsys: pytest.CaptureFixture
):
    assert main(mistake) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    assert main([*mistake, "--json"]) == 1
    also = capsys.readouterr()
    told = json.loads(also.out)["error"]
    assert set(told) == {"what", "where", "fix"} and told["what"] in said.err
    assert also.err == said.err, "a person who looks on reads it all the same"


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["", "json"])
def test_ctrl_c_is_130(flags, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def interrupted(p):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate, "plan_run", interrupted)
    assert main(["plan", DEMO, *flags]) == 130
    said = capsys.readouterr()
    assert "run the same command again: it goes on from here" in said.err
    assert not flags or "stopped" in json.loads(said.out)["error"]["what"]


def test_the_doctor_is_1_where_something_is_wrong(capsys, monkeypatch):
    from avomni_lib.training.doctor import doctor

    monkeypatch.setattr(doctor, "examine", lambda p: REPORT)
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["headline"] == "1 of 2 is wrong, 0 notes"
    assert [row["state"] for row in told["findings"]] == ["ok", "wrong"]
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == f"{REPORT}\n"


def test_status_stop_and_a_dry_run_tell_machines_what_they_tell_people(params_file, capsys):
    told = {}
    for name, *more in (("status",), ("stop",), ("run", "--dry-run")):
        assert main([name, params_file, *more, "--json"]) == 0
        told[name] = json.loads(capsys.readouterr().out)
        assert main([name, params_file, *more]) == 0
        told[name, "shown"] = capsys.readouterr().out
    names = [row["stage"] for row in told["status"]["stages"]]
    assert names == [row["stage"] for row in told["run"]["stages"]]
    assert all(name in told["status", "shown"] for name in names)
    assert {row["done"] for row in told["status"]["stages"]} == {False}
    assert {row["action"] for row in told["run"]["stages"]} == {"would run"}
    assert told["run", "shown"].count("would run") == 2 * len(names), "a line and a row each"
    assert told["stop"]["stopped"] is False
    assert "no training works in this run folder" in told["stop", "shown"]
    assert len({told[name]["run"] for name in ("status", "stop", "run")}) == 1


def test_run_as_avomni_prints_one_object_and_progress_beside_it(params_file):
    """The command as it is installed, a real notebook, and nothing but JSON on stdout."""
    command = [AVOMNI, "run", params_file, "--only", "01_audit", "--json"]
    first, again = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    [ran], [skipped] = (json.loads(done.stdout)["stages"] for done in (first, again))
    assert (ran["stage"], ran["action"], skipped["action"]) == ("01_audit", "ran", "skipped")
    assert ran["figures"] == skipped["figures"] and ran["figures"]["num_clips"] == 2
    assert "01_audit: ran (not run yet)" in first.stderr
    assert re.search(r"\d\d:\d\d:\d\d  \w", first.stderr), "the bars' lines"


def test_a_run_that_prints_leaves_stdout_alone(capsys, monkeypatch):
    def chatter(p, stages, *, force, dry_run):
        print("2026-01-01 00:00:00  ETL: 100 clips")
        yield pipeline.Outcome("01_audit", "ran", "not run yet", 1.0, {})

    monkeypatch.setattr(pipeline, "run", chatter)
    assert main(["run", DEMO, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["stages"][0]["action"] == "ran"
    assert "ETL: 100 clips" in said.err


def in_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 110) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))


@pytest.mark.parametrize(
    ("told", "framed", "words"),
    [
        (PLAN, terminal.plan, ("what run x takes", "12 [of 20]", "8 s each", "! few steps")),
        (
            REPORT,
            terminal.report,
            (
                "1 GB [free]",
                "why: it fills up",
                "what to do: rm -rf outputs/old",
                "1 of 2 is wrong",
            ),
        ),
        (
            COMPARED,
            terminal.compared,
            ("outputs/[b]", "1,234 windows of 40", "speed_mae_mps", "-0.700 to -0.300")
            + ("B is better", "no difference shown", "! the runs were split differently"),
        ),
        (
            {"outputs/demo/cache": VERIFIED},
            terminal.verified,
            ("outputs/demo/cache", "sound", "1,234", "1,000 train", "56,789", "3.50 MB"),
        ),
    ],
    ids=["plan", "doctor", "compare", "verify"],
)
def test_a_terminal_gets_a_table_and_a_pipe_gets_lines(told, framed, words, capsys, monkeypatch):
    terminal.show(told, framed)
    assert capsys.readouterr().out == f"{told}\n"
    in_a_terminal(monkeypatch)
    terminal.show(told, framed)
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for word in words:
        assert word in plain
    assert "never shown" not in plain
    assert max(map(len, plain.splitlines())) <= 110


def test_plan_prints_its_table_in_a_terminal(capsys, monkeypatch):
    assert main(["plan", DEMO]) == 0
    lines = capsys.readouterr().out
    in_a_terminal(monkeypatch)
    assert main(["plan", DEMO]) == 0
    framed = capsys.readouterr().out
    assert "\x1b[" in framed and "\x1b[" not in lines
    assert lines.splitlines()[0] in framed


def test_a_reader_that_leaves_is_no_traceback():
    line = f"{shlex.quote(sys.executable)} -m avomni_lib plan {shlex.quote(DEMO)}"
    done = subprocess.run(
        ["bash", "-c", f"{{ {line}; echo code $? >&2; }} | true"], capture_output=True, text=True
    )
    assert done.stderr.strip() in ("code 1", "code 0"), "0 where it was all said before"


def completions(*words: str) -> set[str]:
    """What bash offers after these words; what is no command and no option it completes itself."""
    script = subprocess.run(
        [AVOMNI],
        env=os.environ | {"_AVOMNI_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
    ).stdout
    name = re.search(r"complete -o default -F (\w+) avomni", script)[1]
    ask = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
    call = f'{name} {shlex.quote(str(AVOMNI))}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}\n{call}"], capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_files():
    assert {"plan"} == completions("avomni", "pl")
    assert {"stop", "status"} == completions("avomni", "st")
    assert {"--json"} == completions("avomni", "verify", "--js")
    assert set() == completions("avomni", "plan", "params/de"), "a file: bash's own default"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell):
    ask = os.environ | {"_AVOMNI_COMPLETE": f"source_{shell}"}
    done = subprocess.run([AVOMNI], env=ask, capture_output=True, text=True)
    assert done.returncode == 0 and "_AVOMNI_COMPLETE" in done.stdout


def test_version_and_module_agree():
    assert (
        avomni_lib.__version__
        in subprocess.run([AVOMNI, "--version"], capture_output=True, text=True).stdout
    )
