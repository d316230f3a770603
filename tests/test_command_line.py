"""The `avomni` command, run as `python -m avomni_lib`: text, JSON and exit codes."""

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
from avomni_lib.evaluation import comparison
from avomni_lib.evaluation.comparison import Compared
from avomni_lib.plan import Plan
from avomni_lib.training.doctor import doctor
from avomni_lib.training.doctor.machine import DoctorFinding, Report
from avomni_lib.training.forecast import estimate
from tests import folder_run
from tests.commands import parsed
from tests.published_set import write_published_set

DEMO = str(files.PROJECT_ROOT / "params" / "demo.yaml")
LINES = [line.strip() for lines in EXAMPLES.values() for line in lines.splitlines() if line]
AVOMNI = Path(sys.executable).with_name("avomni")
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
        DoctorFinding("torch", "ok", "torch 2.13", "never shown"),
        DoctorFinding("disk", "wrong", "1 GB [free]", "it fills up", "rm -rf outputs/old"),
    )
)
PLAN = Plan("what run x takes", [("clips", "12 [of 20]", "8 s each")], ["few steps"])


@pytest.fixture
def params_file(tmp_path: Path) -> str:
    """A params file for a run over a small data set in a local folder."""
    published = write_published_set(tmp_path / "published", 1, 2, 1.0)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(folder_run.values(tmp_path / "outputs", published)))
    return str(path)


@pytest.mark.parametrize("line", LINES)
def test_every_example_in_the_help_parses(line: str):
    command = shlex.split(re.split(r"  +", line)[0])
    assert command[:3] == ["python", "-m", "avomni_lib"]
    assert parsed(command[3:])[0] == command[3]


def test_help_names_the_commands_and_exit_codes(capsys: pytest.CaptureFixture):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (*EXAMPLES, *EXIT_CODES.splitlines(), "--install-completion"):
        assert word in text
    assert not re.search("\x1b|[─│╭]", text), "plain text"
    for name in EXAMPLES:
        assert main([name, "--help"]) == 0
        lines = capsys.readouterr().out
        assert f"python -m avomni_lib {name} " in lines and "--json" in lines
        assert all(line in lines for line in EXIT_CODES.splitlines())


def test_limit_caps_the_number_of_chunks(capsys: pytest.CaptureFixture):
    figures = []
    for limit in ([], ["--limit", "1"], ["--limit", "9"]):
        assert main(["plan", DEMO, "--json", *limit]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert [plan["num_chunks"] for plan in figures] == [2, 1, 2]


USAGE_ERRORS = {
    "plan --limit 0": "--limit",
    "plan --limit two": "--limit",
    "fly params/demo.yaml": "No such command 'fly'",
    "compare outputs/a": "'runs' takes 2 values",
    "run --only": "--only",
    "status --no-such": "--no-such",
    "run --set": "--set",
    "verify": "'CACHE'",
    "export --dtype float8": "--dtype",
}


@pytest.mark.parametrize("wrong", USAGE_ERRORS)
def test_usage_error_exits_with_2(wrong: str, capsys: pytest.CaptureFixture):
    name, *words = wrong.split()
    assert main([name, *words]) == 2
    usage = capsys.readouterr()
    assert usage.out == "" and usage.err.startswith("error: ") and "--help" in usage.err
    assert USAGE_ERRORS[wrong] in usage.err
    assert main([name, "--json", *words]) == 2
    output = capsys.readouterr()
    error = json.loads(output.out)["error"]
    assert output.err == usage.err and set(error) == {"what", "where", "fix"}
    assert error["what"] in output.err and error["fix"].endswith("--help")
    assert main([]) == 2 and "Missing command" in capsys.readouterr().err


def test_option_accepts_several_values():
    line = ["run", "a.yaml", "--only", "01", "02", "--params", "b.yaml", "c.yaml", "--force"]
    _, values = parsed(line)
    assert values["only"] == ["01", "02"] and values["force"]
    assert (values["paths"], values["more"]) == (["a.yaml"], ["b.yaml", "c.yaml"])


USER_ERRORS = [
    ["plan", "params/nowhere.yaml"],
    ["status", DEMO, "--set", "processing.strid=4"],
    ["run", DEMO, "--only", "07_fly"],
    ["run"],
    ["run", DEMO, "--only", "05", "--dry-run", "--set", "run.name=untrained"],
    ["verify", "outputs/nowhere"],
    ["compare", "outputs/nowhere", "outputs/neither"],
    ["export", DEMO, "--set", "run.name=untrained"],
]


@pytest.mark.parametrize("mistake", USER_ERRORS, ids=" ".join)
def test_user_error_exits_with_1_and_no_traceback(
    mistake: list[str], capsys: pytest.CaptureFixture
):
    assert main(mistake) == 1
    text_output = capsys.readouterr()
    assert text_output.out == ""
    assert text_output.err.startswith("error: ") and "Traceback" not in text_output.err
    assert main([*mistake, "--json"]) == 1
    json_output = capsys.readouterr()
    error = json.loads(json_output.out)["error"]
    assert set(error) == {"what", "where", "fix"} and error["what"] in text_output.err
    assert json_output.err == text_output.err, "a person who looks on reads it all the same"


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["", "json"])
def test_ctrl_c_exits_with_130(
    flags, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(p):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate, "plan_run", interrupted)
    assert main(["plan", DEMO, *flags]) == 130
    output = capsys.readouterr()
    assert "run the same command again: it goes on from here" in output.err
    assert not flags or "stopped" in json.loads(output.out)["error"]["what"]


def test_doctor_exits_with_1_on_a_wrong_finding(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda p: REPORT)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["headline"] == "1 of 2 lines wrong, notes: 0"
    assert [row["state"] for row in report["findings"]] == ["ok", "wrong"]
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "torch  ok     torch 2.13" in lines and lines[-1] == report["headline"]
    why = "why: it fills up what to do: rm -rf outputs/old"
    assert f"disk   wrong  1 GB [free] {why}" in lines


def test_json_and_text_output_agree_for_status_stop_and_dry_run(params_file, capsys):
    outputs = {}
    for name, *more in (("status",), ("stop",), ("run", "--dry-run")):
        assert main([name, params_file, *more, "--json"]) == 0
        outputs[name] = json.loads(capsys.readouterr().out)
        assert main([name, params_file, *more]) == 0
        outputs[name, "shown"] = capsys.readouterr().out
    names = [row["stage"] for row in outputs["status"]["stages"]]
    assert names == [row["stage"] for row in outputs["run"]["stages"]]
    assert all(name in outputs["status", "shown"] for name in names)
    assert {row["done"] for row in outputs["status"]["stages"]} == {False}
    assert {row["action"] for row in outputs["run"]["stages"]} == {"would run"}
    assert outputs["run", "shown"].count("would run") == 2 * len(names), "a line and a row each"
    assert outputs["stop"]["stopped"] is False
    assert "no training works in this run folder" in outputs["stop", "shown"]
    assert len({outputs[name]["run"] for name in ("status", "stop", "run")}) == 1


def test_run_prints_one_json_object_and_progress_on_stderr(params_file):
    """The installed command runs a real notebook and prints only JSON to stdout."""
    command = [AVOMNI, "run", params_file, "--only", "01_audit", "--json"]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    [ran_stage], [skipped_stage] = (json.loads(done.stdout)["stages"] for done in (first, second))
    assert (ran_stage["stage"], ran_stage["action"], skipped_stage["action"]) == (
        "01_audit",
        "ran",
        "skipped",
    )
    assert (
        ran_stage["figures"] == skipped_stage["figures"] and ran_stage["figures"]["num_clips"] == 2
    )
    assert "01_audit: ran (not run yet)" in first.stderr
    assert re.search(r"\d\d:\d\d:\d\d  \w", first.stderr), "the bars' lines"


RENDERED = {
    "plan": ((estimate, "plan_run"), PLAN, ["what run x takes", "12 [of 20]", "! few steps"]),
    "doctor": ((doctor, "examine"), REPORT, ["1 GB [free]", "why: it fills up", "1 of 2 lines"]),
    "compare": (
        (comparison, "compare"),
        COMPARED,
        ["outputs/[b]", "1,234 windows of 40", "speed_mae_mps", "-0.700 to -0.300"]
        + ["B is better", "no difference shown", "the runs were split differently"],
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_terminal_output_is_a_table_and_pipe_output_is_lines(name, capsys, monkeypatch):
    patched, result, words = RENDERED[name]
    monkeypatch.setattr(*patched, lambda *_: result)
    line = [name, "a", "b"] if name == "compare" else [name, DEMO]
    main(line)
    lines = capsys.readouterr().out
    assert name == "doctor" or lines == f"{result}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "110")
    main(line)
    shown = capsys.readouterr().out
    assert "\x1b[" in shown and "\x1b[" not in lines
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for word in words:
        assert word in plain and word in lines
    assert "never shown" not in plain + lines
    assert max(map(len, plain.splitlines())) <= 110


def completions(*words: str) -> set[str]:
    """What avomni's completion offers bash after these words; bash completes files itself."""
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


def test_version_option_prints_the_package_version(capsys):
    assert main(["--version"]) == 0
    assert avomni_lib.__version__ in capsys.readouterr().out
