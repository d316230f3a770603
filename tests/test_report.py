"""The report: self-contained, every text escaped, and a working command for every claim."""

import base64
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import pyarrow.compute as pc
import pytest
import yaml

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.evaluation import metrics
from avomni_lib.notebook.pages import report, wording
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.run import runs
from avomni_lib.params import CONFIDENTIAL, Params
from tests import answered_windows, cached_run

ROWS = {"mean": 1.0, "base": 0.8, "trained_blind": 0.9, "one_camera": 0.1, "adapted": 0.1}
NASTY = '<script>alert("x")</script> $x$ & </pre>'
SHA256 = "0123456789abcdef" * 4


class Page(HTMLParser):
    """The tags of a page with their attributes, and the texts of some of them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(text)

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    handle_startendtag = handle_starttag  # `<img/>`

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        for tag in self._open:
            self.texts[tag][-1] += data


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    p = cached_run.make(tmp_path_factory.mktemp("reported"), processing={"horizon_s": 6.4})
    cache = Cache.open(p.cache_dir)
    return Windows(cache, cached_run.LENGTH, cached_run.STRIDE, horizon_s=6.4)


@pytest.fixture(scope="module")
def table(windows):
    answers = answered_windows.answers(windows, "summary_v1", ROWS)
    texts = [text.replace("babble_{", NASTY) for text in answers["answer"].to_pylist()]
    place = answers.column_names.index("answer")
    return answers.set_column(place, "answer", [texts])


def params(folder, source="world", name="reported run", **run):
    sections = {"run": {"outputs_dir": str(folder), "name": name.replace(" ", "_"), **run}}
    return Params.from_values(sections | {"dataset": {"source": source}})


def written(p, table):
    """The page of a run, and its figures."""
    folder = p.run_dir / "06_evaluate"
    metrics.write(table, folder / "answers.parquet")
    pictures = {name: folder / "figures" / f"{name}.png" for name in report.PICTURES}
    pictures["anything"] = folder / "figures" / "anything.png"
    for number, path in enumerate(pictures.values()):
        path.parent.mkdir(exist_ok=True)
        picture = canvas.Picture(300 + number, 60)
        picture.finding(path.stem)
        path.write_bytes(picture.png())
    figures = metrics.figures(table) | {"split_sha256": SHA256}
    return report.write(p, figures, table, pictures, report.cost_of(p, 12.0), folder), figures


@pytest.fixture(scope="module")
def made(tmp_path_factory, table):
    return written(params(tmp_path_factory.mktemp("a folder")), table)


@pytest.fixture(scope="module")
def page(made):
    return Page(made[0].read_text())


def test_report_is_self_contained(made, page):
    known = {"html", "head", "body", "meta", "title", "style", "div", "p", "h1", "h2", "h3", "h4"}
    known |= {"table", "tr", "th", "td", "small", "ul", "li", "span", "pre", "code", "figure"}
    assert {tag for tag, _ in page.tags} <= known | {"img", "figcaption"}, "no script, no link"
    for tag, attributes in page.tags:
        assert not {"href", "srcset", "background", "poster"} & set(attributes), tag
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"url\(|@import", made[0].read_text())


def test_report_supports_phones_and_dark_mode(made, page):
    text = made[0].read_text()
    (viewport,) = [
        attributes["content"] for _, attributes in page.tags if attributes.get("name") == "viewport"
    ]
    assert viewport == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in text
    inside = re.findall(r'<div class="scroll"><table', text)
    assert len(inside) == text.count("<table"), "a wide table scrolls by itself"


def test_report_embeds_every_picture_of_the_folder(made, page):
    sources = [attributes["src"] for attributes in page.of("img")]
    inside = [base64.b64decode(source.partition("base64,")[2]) for source in sources]
    beside = [path.read_bytes() for path in (made[0].parent / "figures").glob("*.png")]
    assert sorted(inside) == sorted(beside) and len(set(inside)) == len(report.PICTURES) + 1
    alts = [attributes["alt"] for attributes in page.of("img")]
    assert all(alts) and len(set(alts)) == len(alts)


def test_answers_are_escaped_in_the_report(made, page):
    text = made[0].read_text()
    assert NASTY not in text and "<script" not in text
    assert sum(NASTY in text for text in page.texts["pre"]) >= 2, "base and adapted, to the letter"


def test_report_shows_ladder_slices_and_facts(made, page):
    _, figures = made
    lines = [re.sub(r"\s+", " ", line).strip() for line in page.texts["tr"]]
    for row in figures["ladder"]:
        words = [wording.row(row["name"]), f"{row['value']:.3f}"]
        words += [f"{row['low']:.3f} to {row['high']:.3f}", f"{row['valid_share']:.1%}"]
        if row["name"] != "adapted":
            words += [f"{row['difference_to_model']:+.3f}"]
            words += [f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"]
        (line,) = [line for line in lines if all(word in line for word in words)]
        assert f"{row['num_windows']:,}" in line and str(row["num_clips"]) in line
    whole = re.sub(r"\s+", " ", page.texts["body"][0])
    for row in figures["slices"]:
        assert f"{row['value']}" in whole and f"{row['model']:.3f}" in whole
    facts = dict(report.facts(params("x"), figures))
    assert facts["split, sha256"] == SHA256 and all(text in whole for text in facts.values())


def test_every_claim_has_a_command_that_reproduces_it(made, page):
    _, figures = made
    commands = [text for text in page.texts["pre"] if text.startswith("python -c")]
    assert len(commands) == len(figures["claims"]) >= 3
    for claim, command in zip(figures["claims"], commands, strict=True):
        words = shlex.split(command)
        environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, *words[1:]],
            capture_output=True,
            text=True,
            cwd=files.PROJECT_ROOT,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == claim["text"]
        (shown,) = [text for text in page.texts["li"] if claim["text"] in text]
        assert shown.startswith("Shown:" if claim["holds"] else "Not shown:")
    assert {claim["holds"] for claim in figures["claims"]} == {True}


def test_command_is_quoted_for_any_folder_name():
    code = report.RECOMPUTE.format(path="out \"puts/it's $HOME `x`!", number=3)
    assert shlex.split(report._quoted(code)) == [code]
    assert report._quoted("print('x')") == "\"print('x')\"", "in plain cases it is easy to read"


def test_report_command_uses_the_saved_params_file(made, page):
    folder = made[0].parent
    p = Params.from_values(yaml.safe_load((folder / "params.yaml").read_text()))
    assert p.run_dir == folder.parent
    (command,) = [text for text in page.texts["pre"] if "--only" in text]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "avomni_lib", "run"]
    assert files.resolve(words[4]) == folder / "params.yaml"
    assert Params.from_files([files.resolve(words[4])]) == p


@pytest.mark.parametrize("source", ["hub", "folder"])
def test_reports_on_third_party_clips_carry_a_banner(source, table, tmp_path, page):
    path, _ = written(params(tmp_path, source), table)
    notices = [a for tag, a in Page(path.read_text()).tags if a.get("class") == "notice"]
    assert len(notices) == 2, "above and below"
    assert CONFIDENTIAL in path.read_text()
    assert CONFIDENTIAL not in page.texts["body"][0]


def test_missing_picture_error_names_the_file(table, tmp_path):
    figures = metrics.figures(table)
    missing = tmp_path / "ladder.png"
    with pytest.raises(AvomniError, match="picture of the report is missing") as caught:
        report.write(params(tmp_path), figures, table, {"ladder": missing}, _no_cost(), tmp_path)
    assert str(missing) in str(caught.value) and not (tmp_path / "report.html").exists()


def _no_cost():
    return {"stages": [], "seconds": 0.0, "price_per_hour": None, "price": None}


def _finished(p, name, seconds, figures):
    stage = runs.OpenStage(p, runs.BY_NAME[name])
    stage.finish(figures)
    result = files.read_json(stage.folder / runs.RESULT)
    result |= {"seconds": seconds, "peak_memory_gb": 1.25}
    files.write_json(stage.folder / runs.RESULT, result)


def test_cost_is_the_sum_over_finished_stages(tmp_path, table):
    p = params(tmp_path, price_per_hour=3.0)
    _finished(p, "03_etl", 600.0, {})
    trained = {"peak_memory": {"host_gb": 1.0, "device_gb": 70.5}, "measured": {"seconds": 4800.0}}
    _finished(p, "05_train", 60.0, trained)
    spent = report.cost_of(p, 1800.0)
    assert [row["stage"] for row in spent["stages"]] == ["03_etl", "05_train", "06_evaluate"]
    assert [row["seconds"] for row in spent["stages"]] == [600, 4800, 1800], "all of the training"
    assert spent["seconds"] == 7200 and spent["price"] == pytest.approx(6.0)
    assert [row["device_gb"] for row in spent["stages"]] == [None, 70.5, None]
    assert spent["stages"][2]["memory_gb"] > 0.05
    assert "cores" in spent["stages"][0]["machine"]
    page = report.write(p, metrics.figures(table), table, {}, spent, tmp_path).read_text()
    for words in ("2.0 h", "6.00 at 3.00 an hour", "70.50 GB"):
        assert words in page
    free = report.cost_of(params(tmp_path))
    assert len(free["stages"]) == 2 and free["price"] is None


def test_machine_description_names_the_accelerator():
    made_with = {"cores": 16, "host_memory_gb": 128.0}
    assert report.machine_of(made_with) == "16 cores, 128 GB of memory"
    on_card = made_with | {"device": {"value": "cuda:0", "reason": "AMD MI300X by ROCm 6.4"}}
    assert report.machine_of(on_card).endswith("; AMD MI300X by ROCm 6.4")
    assert "MI300X" not in report.machine_of(
        made_with | {"device": {"value": "cpu", "reason": "-"}}
    )


@pytest.mark.parametrize("name", ["future_v1", "meta_v1", "coc_v1", "full_v1"])
def test_every_target_has_a_report(name, windows, tmp_path):
    answers = answered_windows.answers(windows, name, {"mean": 1.0, "base": 0.8, "adapted": 0.2})
    path = report.write(
        params(tmp_path), metrics.figures(answers), answers, {}, _no_cost(), tmp_path
    )
    page = Page(path.read_text())
    assert len(page.texts["h3"]) == 2 * report.NUM_ANSWERS
    shown = {(text.split()[2].rstrip(","), int(text.split()[4])) for text in page.texts["h3"]}
    rows = metrics.worst(answers, "adapted", 2) + metrics.typical(answers, "adapted", 2)
    assert shown == {(row["clip_id"], row["window"]) for row in rows}
    for row in rows:
        assert row["answer"] in page.texts["pre"]


def test_report_on_one_clip_marks_all_claims_as_not_shown(windows, table, tmp_path):
    alone = table.filter(pc.equal(table["clip_id"], windows[0].clip_id))
    path = report.write(params(tmp_path), metrics.figures(alone), alone, {}, _no_cost(), tmp_path)
    page = Page(path.read_text())
    assert all("Not shown:" in text for text in page.texts["li"])


def test_report_template_is_part_of_the_package():
    project = tomllib.loads((files.PROJECT_ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["avomni_lib"]
    package = files.PROJECT_ROOT / "avomni_lib"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert package / "notebook" / "pages" / report.TEMPLATE in shipped
