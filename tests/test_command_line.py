"""`python -m avomni_lib`: every example of the help parses, and a user's mistake is one message."""

import json
import shlex
import subprocess
import sys

import pytest

from avomni_lib import files
from avomni_lib.__main__ import EXAMPLES, _parser, main

DEMO = str(files.PROJECT_ROOT / "params" / "demo.yaml")
LINES = [line.strip() for line in EXAMPLES.splitlines() if "python -m avomni_lib" in line]


@pytest.mark.parametrize("line", LINES)
def test_every_example_of_the_help_is_a_command(line: str):
    command = shlex.split(line.split("   ")[0].split("  a share")[0])
    assert command[:3] == ["python", "-m", "avomni_lib"]
    _parser().parse_args(command[3:])


def test_help_names_the_commands_and_exit_codes():
    done = subprocess.run([sys.executable, "-m", "avomni_lib", "--help"], capture_output=True)
    assert done.returncode == 0
    for word in ("run", "status", "plan", "verify", "exit codes: 0 done"):
        assert word in done.stdout.decode()


def test_limit_takes_at_most_so_many_chunks(capsys: pytest.CaptureFixture):
    figures = []
    for limit in ([], ["--limit", "1"], ["--limit", "9"]):
        assert main(["plan", DEMO, "--json", *limit]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert [told["num_chunks"] for told in figures] == [2, 1, 2]


@pytest.mark.parametrize("limit", ["0", "-1", "two"])
def test_a_limit_is_a_count(limit: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", DEMO, "--limit", limit])
    assert stopped.value.code == 2
    assert "--limit" in capsys.readouterr().err
