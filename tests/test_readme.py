"""What README.md and docs/ name exists: parameters, files, links, error texts, commands."""

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
# Messages that span several lines of source are joined, as they are shown.
MESSAGES = re.sub(r'"\s*\n\s*f?"', "", SOURCES)


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_every_page_is_linked_from_the_readme():
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#]+)\)", README))


def test_parameter_table_matches_the_schema():
    table = "".join(re.findall(r"^\|.*\n", PAGES["docs/parameters.md"], re.MULTILINE))
    assert table.strip() == params.table(), "run `make parameters`"


def prose(page: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_link_targets_exist(page: str):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), target


@every_page
def test_named_files_exist(page: str):
    folders = r"avomni_lib|avomni_world|docs|notebooks|params|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]*)`", PAGES[page]):
        # A file that the page asks the reader to write does not exist yet.
        is_new = f"# {name}\n" in PAGES[page]
        assert is_new or list(ROOT.glob(name)), name


def test_every_capability_names_an_existing_test():
    rows = re.findall(
        r"^\| .+ \| `([\w/]+\.py)::(test_\w+)` \|$", PAGES["docs/capabilities.md"], re.M
    )
    assert len(rows) >= 40
    for name, test in rows:
        assert f"\ndef {test}(" in (ROOT / "tests" / name).read_text(), f"{name}::{test}"


# The changelog also names removed parameters.
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"CHANGELOG.md"}))
def test_named_parameters_exist(page: str):
    sections = "|".join(params.Params.model_fields)
    known = set(re.findall(r"^\| `([\w.]+)`", params.table(), re.MULTILINE))
    file_names = r"(?:py|yaml|json|parquet|sh|md)$"
    for name in re.findall(rf"`((?:{sections})\.[a-z_.0-9]+)(?:[:=] ?[^`]+)?`", PAGES[page]):
        if not re.search(file_names, name):
            assert name in known or any(key.startswith(f"{name}.") for key in known), name


def errors_in_troubleshooting() -> list[str]:
    return re.findall(r"^\| `([^`]+)`", PAGES["docs/troubleshooting.md"], re.MULTILINE)


@pytest.mark.parametrize("text", errors_in_troubleshooting())
def test_troubleshooting_texts_occur_in_the_source(text: str):
    assert text in MESSAGES


@pytest.mark.parametrize("text", PROVOKED)
def test_troubleshooting_texts_match_raised_messages(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert text in errors_in_troubleshooting()
    assert text in said(text, Place(tmp_path, monkeypatch))


def test_every_troubleshooting_text_is_provoked_by_a_test():
    """Texts that are not in `PROVOKED` are provoked by the test files listed here."""
    elsewhere = {  # text -> test file, and a text in it
        "the kernel was killed": ("notebooks/test_chain.py", "KERNEL_LOST in stderr"),
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
    for name, quoted in elsewhere.values():
        assert quoted in (ROOT / "tests" / name).read_text()


def test_troubleshooting_lists_at_least_eight_errors():
    assert len(errors_in_troubleshooting()) >= 8


def commands() -> list[str]:
    """Every command in the code blocks and the inline code of the pages."""
    lines: list[str] = []
    for page, text in PAGES.items():
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines += "\n".join(blocks).replace("\\\n", " ").splitlines()
        starts = r"python3? -m|make|papermill|voila|avomni|pip|ffmpeg"
        lines += re.findall(rf"`((?:{starts}) [^`]*)`", prose(page))
    return sorted({line.strip() for line in lines if line.strip() and "…" not in line})


def words(line: str) -> Iterator[list[str]]:
    """The arguments of each command in a line; the value of `--wrap` is a command too."""
    split = list(shlex.split(re.sub(r"<(\w+)>", r"\1", line), comments=True))
    for word, after in itertools.pairwise(split):
        if word == "--wrap":
            yield from words(after)
    stop = next((i for i, word in enumerate(split) if word in (">", "2>&1", "&", "|", ">>")), None)
    yield split[:stop]


COMMANDS = [(line, args) for line in commands() for args in words(line)]
# Files that the reader provides.
USER_FILES = {"data_config.yaml", "finetuning_config.yaml", "own.yaml", "outputs/demo/tiles.yaml"}


def module_of(args: list[str]) -> tuple[str, list[str]] | None:
    """The module that `python -m` starts, and its arguments."""
    for place, word in enumerate(args[:-1]):
        if word == "-m" and (place == 0 or "python" in args[place - 1] or "torchrun" in args):
            return args[place + 1], args[place + 2 :]
    return None


@pytest.mark.parametrize(("line", "args"), COMMANDS, ids=[line[:60] for line, _ in COMMANDS])
def test_documented_commands_are_valid(line: str, args: list[str]):
    module = module_of(args)
    if args and args[0] == "avomni":
        module = "avomni_lib", args[1:]
    if module and module[0] == "avomni_lib":
        if module[1] and not module[1][0].startswith("--"):
            check_own_command(module[1])
    elif module:
        assert importlib.util.find_spec(module[0]), module[0]
    elif args and args[0] in ("papermill", "voila"):
        assert (ROOT / args[1]).exists()
        if "-f" in args:
            assert (ROOT / args[args.index("-f") + 1]).exists()
    elif args and args[0] == "make":
        check_make(args[1:])


def check_own_command(arguments: list[str]) -> None:
    """Parses an `avomni` command: its params files, parameters and stages must exist."""
    name, values = parsed(arguments)
    if name in ("verify", "compare"):
        return
    named = [*(values["paths"] or []), *(values["more"] or [])]
    paths = [path for path in named if path not in USER_FILES]
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


def test_docs_contain_commands_of_every_kind():
    lines = [line for line, _ in COMMANDS]
    for part in ("make demo", "make test", "papermill ", "avomni_lib compare", "avomni_lib verify"):
        assert any(part in line for line in lines), part
    assert len(lines) > 25


def test_readme_shows_the_current_plan(tmp_path: Path):
    """The plan of params/mi300x.yaml before any download, without the rows that a GPU changes."""
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


def test_numeric_parameters_state_their_unit():
    """The row of a number says in its meaning what it counts or measures."""
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


def test_readme_tree_names_only_existing_modules():
    tree = README.split("## The tree")[1].split("```")[1]
    packages = {"dataset", "etl", "training", "evaluation", "notebook"}
    seen = set()
    for line in tree.splitlines():
        match = re.match(r"  (\w+)/ .*: ([\w, ]+)$", line)
        if match and match[1] in packages:
            seen.add(match[1])
            for name in match[2].split(", "):
                folder = ROOT / "avomni_lib" / match[1]
                assert (folder / f"{name}.py").exists() or (folder / name).is_dir(), name
    assert seen == packages
