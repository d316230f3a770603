"""README and the pages of docs/ are true: parameters, files, links, error texts, commands."""

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from avomni_lib import files, params
from avomni_lib.cli import EXIT_CODES
from avomni_lib.notebook.run import pipeline
from avomni_lib.plan import Plan
from avomni_lib.training.forecast import estimate
from tests.commands import parsed
from tests.provoked_errors import PROVOKED, Place, said

ROOT = files.PROJECT_ROOT
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
every_page = pytest.mark.parametrize("page", PAGES)
SOURCES = "\n".join(path.read_text() for path in (ROOT / "avomni_lib").rglob("*.py"))
# A message that is built over two lines of source, as it reads when it is shown.
MESSAGES = re.sub(r'"\s*\n\s*f?"', "", SOURCES)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_every_page_is_linked_from_the_readme():
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#]+)\)", README))


def test_the_table_of_parameters_is_the_schemas():
    table = "".join(re.findall(r"^\|.*\n", PAGES["docs/parameters.md"], re.MULTILINE))
    assert table.strip() == params.table(), "run `make parameters`"


def prose(page: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_pictures_and_links_exist(page: str):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), target


@every_page
def test_files_that_are_named_exist(page: str):
    folders = r"avomni_lib|avomni_world|docs|notebooks|params|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]*)`", PAGES[page]):
        # What a page asks its reader to write is there only afterwards.
        is_new = f"# {name}\n" in PAGES[page]
        assert is_new or list(ROOT.glob(name)), name


def test_each_capability_names_a_test_that_exists():
    rows = re.findall(
        r"^\| .+ \| `([\w/]+\.py)::(test_\w+)` \|$", PAGES["docs/capabilities.md"], re.M
    )
    assert len(rows) >= 40
    for name, test in rows:
        assert f"\ndef {test}(" in (ROOT / "tests" / name).read_text(), f"{name}::{test}"


# The changelog names parameters that are gone, too.
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"CHANGELOG.md"}))
def test_parameters_that_are_named_exist(page: str):
    sections = "|".join(params.Params.model_fields)
    known = set(re.findall(r"^\| `([\w.]+)`", params.table(), re.MULTILINE))
    files_and_rooms = r"(?:py|yaml|json|parquet|sh|md)$"
    for name in re.findall(rf"`((?:{sections})\.[a-z_.0-9]+)(?:[:=] ?[^`]+)?`", PAGES[page]):
        if not re.search(files_and_rooms, name):
            assert name in known or any(key.startswith(f"{name}.") for key in known), name


def errors_in_troubleshooting() -> list[str]:
    return re.findall(r"^\| `([^`]+)`", PAGES["docs/troubleshooting.md"], re.MULTILINE)


@pytest.mark.parametrize("text", errors_in_troubleshooting())
def test_troubleshooting_quotes_what_the_code_prints(text: str):
    assert text in MESSAGES


@pytest.mark.parametrize("text", PROVOKED)
def test_troubleshooting_quotes_the_messages_that_are_raised(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert text in errors_in_troubleshooting()
    assert text in said(text, Place(tmp_path, monkeypatch))


def test_nearly_all_of_it_is_made_to_happen_here():
    """The rest is provoked beside what it is about, in the tests named here."""
    elsewhere = {  # text -> file, and what its test looks for
        "the kernel was killed": ("notebooks/test_chain.py", "KERNEL_LOST in told"),
        "training diverged": ("test_worker.py", "training diverged"),
        "the process that read it died, and again when it was alone": ("test_workers.py", "died"),
        "s and was stopped": ("test_workers.py", "and was stopped"),
        "no Ray cluster answers at": ("test_engines.py", "no Ray cluster answers"),
        "is not on the disk: 02_download fetches the cameras": (
            "test_widgets.py",
            "rear tele is not in the folder",
        ),
        "the raw files of this clip were evicted on": (
            "test_widgets.py",
            "raw files of this clip were evicted on 20",
        ),
        "no window fits": ("test_widgets.py", "no window fits"),
        "the file is not one that 04_tiles has written": ("test_params_file.py", "stays as it is"),
        "What is whole is kept: run this cell again": ("test_interrupts.py", "faults.WORDS"),
        "no notebook of this run has been executed yet": (
            "test_pages.py",
            "no notebook of this run has been executed",
        ),
    }
    assert set(errors_in_troubleshooting()) - set(PROVOKED) == set(elsewhere)
    for name, words_of_it in elsewhere.values():
        assert words_of_it in (ROOT / "tests" / name).read_text()


def test_there_is_troubleshooting():
    assert len(errors_in_troubleshooting()) >= 8


def commands() -> list[str]:
    """Every command that a page prints, in its blocks and in its lines, comments left out."""
    lines: list[str] = []
    for page, text in PAGES.items():
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines += "\n".join(blocks).replace("\\\n", " ").splitlines()
        starts = r"python3? -m|make|papermill|voila|avomni|pip|ffmpeg"
        lines += re.findall(rf"`((?:{starts}) [^`]*)`", prose(page))
    return sorted({line.strip() for line in lines if line.strip() and "…" not in line})


def words(line: str) -> Iterator[list[str]]:
    """The words of each command of a line: what `--wrap` holds is one of its own."""
    split = list(shlex.split(re.sub(r"<(\w+)>", r"\1", line), comments=True))
    for word, after in itertools.pairwise(split):
        if word == "--wrap":
            yield from words(after)
    stop = next((i for i, word in enumerate(split) if word in (">", "2>&1", "&", "|", ">>")), None)
    yield split[:stop]


COMMANDS = [(line, args) for line in commands() for args in words(line)]
# What a reader brings.
OWN_FILES = {"data_config.yaml", "finetuning_config.yaml", "own.yaml", "outputs/demo/tiles.yaml"}


def module_of(args: list[str]) -> tuple[str, list[str]] | None:
    """The module that `python -m` starts, and its arguments."""
    for place, word in enumerate(args[:-1]):
        if word == "-m" and (place == 0 or "python" in args[place - 1] or "torchrun" in args):
            return args[place + 1], args[place + 2 :]
    return None


@pytest.mark.parametrize(("line", "args"), COMMANDS, ids=[line[:60] for line, _ in COMMANDS])
def test_every_command_is_one(line: str, args: list[str]):
    found = module_of(args)
    if args and args[0] == "avomni":
        found = "avomni_lib", args[1:]
    if found and found[0] == "avomni_lib":
        if found[1] and not found[1][0].startswith("--"):
            check_own_command(found[1])
    elif found:
        assert importlib.util.find_spec(found[0]), found[0]
    elif args and args[0] in ("papermill", "voila"):
        assert (ROOT / args[1]).exists()
        if "-f" in args:
            assert (ROOT / args[args.index("-f") + 1]).exists()
    elif args and args[0] == "make":
        check_make(args[1:])


def check_own_command(arguments: list[str]) -> None:
    """Real parser, params files that are there, parameters that exist, stages of the chain."""
    name, values = parsed(arguments)
    if name in ("verify", "compare"):
        return
    named = [*(values["paths"] or []), *(values["more"] or [])]
    paths = [path for path in named if path not in OWN_FILES]
    p = params.Params.from_files([ROOT / path for path in paths], values["changes"] or [])
    if name == "run":
        assert pipeline.choose(p, values["first"], values["only"] or [])
        assert values["shard"] is None or re.fullmatch(r"[\w$]+/\d+", values["shard"])


def check_make(args: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^\s*([A-Z_]+)\s*[?:]?=", makefile, re.MULTILINE))
    for word in args:
        name, is_set, _ = word.partition("=")
        assert name in (variables if is_set else targets), word


def test_there_are_commands_of_each_kind():
    lines = [line for line, _ in COMMANDS]
    for part in ("make demo", "make test", "papermill ", "avomni_lib compare", "avomni_lib verify"):
        assert any(part in line for line in lines), part
    assert len(lines) > 25


def test_the_plan_that_is_shown_is_the_plan(tmp_path: Path):
    """Of the real run, as it stands before anything is fetched; what a GPU changes is left out."""
    shown = re.search(r"```text\n(what run mi300x takes.*?)```", README, re.DOTALL)[1]
    p = params.Params.from_files(
        [ROOT / "params" / "mi300x.yaml"], [f"dataset.local_dir={tmp_path}"]
    )
    plan: Plan = estimate.plan_run(p)
    assert set(shown.splitlines()) - set(str(plan).splitlines()) == set(), "its rows have changed"
    assert len(shown.splitlines()) > 8


def test_exit_codes_are_documented():
    section = PAGES["docs/running.md"].split("## The command line")[1]
    codes = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|", section, re.MULTILINE))
    assert list(codes) == re.findall(r"\b(\d+) \w", EXIT_CODES)


def test_units_of_numbers_are_named():
    """A number's row says what it counts or measures, in its name or in its meaning."""
    units = (
        *(r"px", r"\bs\b", r"a second", r"GB", r"tokens", r"\bsteps\b", r"frames", r"clips?\b"),
        *(r"chunks", r"windows", r"processes", r"passes", r"share", r"files", r"batches", r"hours"),
        *(r"currency", r"checkpoints", r"answers", r"peak", r"norm", r"\bms\b", r"ticks"),
    )
    unitless = {"run.seed", "dataset.world.seed", "model.lora_rank", "model.lora_alpha"}
    unitless |= {"training.weight_decay", "evaluation.temperature", "live.port"}
    for name, default, meaning in re.findall(
        r"^\| `([\w.]+)` \| `([^`]+)` \| (.*) \|$", params.table(), re.M
    ):
        if re.fullmatch(r"[\d.e-]+", default) and name not in unitless:
            assert re.search("|".join(units), meaning), f"{name}: {meaning}"


def test_the_tree_names_only_what_is_there():
    tree = README.split("## The tree")[1].split("```")[1]
    rooms = {"dataset", "etl", "training", "evaluation", "notebook"}
    seen = set()
    for line in tree.splitlines():
        found = re.match(r"  (\w+)/ .*: ([\w, ]+)$", line)
        if found and found[1] in rooms:
            seen.add(found[1])
            for name in found[2].split(", "):
                room = ROOT / "avomni_lib" / found[1]
                assert (room / f"{name}.py").exists() or (room / name).is_dir(), name
    assert seen == rooms
