"""User-written targets and grids: found, checked, hashed, compared, scored; paths are refused."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.run import build
from avomni_lib.evaluation import metrics
from avomni_lib.params import Params, user_code
from avomni_lib.params.sections import TARGETS as NAMES
from avomni_lib.training.fit import job
from avomni_lib.training.model import model_input
from avomni_lib.training.prompt import tokens
from avomni_lib.training.targets import TARGETS, target, target_of
from avomni_lib.training.targets.constants import constants
from tests.changed_params import changed

SOURCE = """
from dataclasses import dataclass


class Kmh:
    question = "How fast, in km/h?"
    pattern = r"(?P<kmh>[0-9]{1,3}) km/h, (?P<m>[0-9]+[.][0-9]) m"

    def numbers(self, truth):
        return {"kmh": 3.6 * truth.speed_mps, "m": truth.path_m}

    def write(self, kmh, m):
        return f"{kmh:.0f} km/h, {m:.1f} m"


MADE, GRID, TEXT = Kmh(), [["camera_front_wide_120fov", None]], "4-cam:4"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(user_code.FOLDERS, "")
    write(tmp_path, SOURCE)
    return tmp_path


def write(folder, text, name="own_of_test"):
    (folder / f"{name}.py").write_text(text)


def params(folder, **sections) -> Params:
    path = folder / "own.yaml"
    files.write_json(path, {"training": {"target": "own_of_test:Kmh"}, **sections})
    return Params.from_files([path])


def refusal(folder, text, target_name="own_of_test:Kmh") -> str:
    write(folder, text)
    with pytest.raises(AvomniError) as caught:
        target_of(params(folder, training={"target": target_name}))
    return str(caught.value)


def test_schema_lists_the_built_in_targets():
    assert tuple(TARGETS) == NAMES


def test_custom_target_renders_and_parses(folder):
    custom = target_of(params(folder))
    text = custom.render(Truth(1.5, 18.04, 18.0, 12.0))
    assert text == "43 km/h, 18.0 m"
    assert custom.parse(f"{text}<|im_end|>").numbers == (43.0, 18.0)
    assert custom.parse("43 km/h") is None and custom.read(f"It is {text}!").numbers == (43.0, 18.0)
    assert custom.pattern == r"(?:[0-9]{1,3}) km/h, (?:[0-9]+[.][0-9]) m", "for constrained answers"
    assert target("own_of_test:MADE").question == custom.question, "an object or its class"
    assert custom.error(custom.parse("40 km/h, 1.0 m"), custom.of(Truth(1, 1, 1, 10.0))) == 4.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Kmh", "Other", "has no 'Kmh'"),
        ('question = "How fast, in km/h?"', "question = 3", "its question is 3, a text is wanted"),
        ("(?P<m>", "(", "numbers returned {'kmh': 101"),
        ("(?P<m>", "(?P<m", "its pattern is not a regular expression"),
        ("def write", "def wrote", "it has no function write"),
        ("{m:.1f} m", "{m:.1f} metres", "which its pattern does not match"),
        ("truth.path_m}", "truth.path}", "failed with AttributeError: 'Truth' object has no att"),
        ('"m": truth.path_m', '"m": "far"', "which are no numbers"),
        ("    question", "    horizon_s = 3\n    question", "its horizon_s is 3, it is 0 or 6.4"),
    ],
)
def test_invalid_target_is_refused_with_its_file(folder, before, after, message):
    error_text = refusal(folder, SOURCE.replace(before, after))
    assert message in error_text and str(folder / "own_of_test.py") in error_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_mod"),
        ("x = 1\ny = = 2\n", "failed with SyntaxError"),
        ("x = 1\nraise SystemExit(3)\n", "failed with SystemExit: 3"),
    ],
)
def test_failed_import_is_reported_with_file_and_line(folder, text, message):
    error_text = refusal(folder, text)
    assert (
        message in error_text
        and f"{folder / 'own_of_test.py'}, line 2 (training.target)" in error_text
    )


@pytest.mark.parametrize(
    "name", ["own.py:Kmh", "/tmp/own:Kmh", "../own:Kmh", "own:a.b", "own:", "hub/own:Kmh", "none"]
)
def test_path_in_place_of_a_module_is_refused(name):
    with pytest.raises(AvomniError, match="training.target: choose one of summary_v1.*, or name"):
        Params.from_values({"training": {"target": name}})


def test_missing_module_and_used_name_are_refused(folder):
    with pytest.raises(AvomniError, match="there is no module 'nowhere'") as caught:
        target("nowhere:X")
    assert "write nowhere.py beside the params file or the notebook" in str(caught.value)
    params(folder)
    for name in ("json", "numpy"):
        write(folder, SOURCE, name)
        with pytest.raises(AvomniError, match=f"there is a module '{name}' already"):
            target(f"{name}:Kmh")


def test_plan_names_the_file_without_importing_it(folder):
    write(folder, "raise SystemExit('it ran')")
    p = params(folder)
    [(key, reference, file)] = p.code_rows()
    assert (key, reference) == ("training.target", "own_of_test:Kmh")
    assert f"{folder / 'own_of_test.py'}, sha256 " in file


def test_edited_target_is_reimported_and_changes_the_digest(folder):
    p = params(folder)
    first, values = target_of(p), p.values(*job.READS)
    digest = p.digest("training.target")
    write(folder, SOURCE.replace("How fast", "Say how fast"))
    assert target_of(p).question != first.question
    assert p.digest("training.target") != digest
    assert p.values(*job.READS) != values and Params().values("training.target") == {
        "training.target": "summary_v1"
    }


def test_adapter_of_an_edited_target_is_refused(folder):
    p = params(folder)

    def seen():
        return model_input.what_the_model_sees(p, tokens.backbone_of(p), "b", "none", {})

    before = seen()
    model_input.refuse_other(before, seen(), "here")
    write(folder, SOURCE + "# a word\n")
    with pytest.raises(AvomniError, match="target_source: trained with '[0-9a-f]{40}"):
        model_input.refuse_other(before, seen(), "here")


def test_subprocess_finds_the_module(folder):
    p = params(folder)
    files.write_json(folder / "elsewhere" / "params.json", p.complete())
    code = (
        "import sys; from avomni_lib.params import Params\n"
        "from avomni_lib.training.targets import target_of\n"
        "print(target_of(Params.from_files(sys.argv[1:])).question)"
    )
    words = [sys.executable, "-c", code, str(folder / "elsewhere" / "params.json")]
    done = subprocess.run(
        words, capture_output=True, text=True, env=files.environment(), cwd=files.PROJECT_ROOT
    )
    assert done.stdout == "How fast, in km/h?\n", done.stderr


def test_custom_grid_gives_its_rows_and_changes_the_digest(folder):
    p = params(folder, vision={"cameras": "own_of_test:GRID"})
    grid = cameras.grid(p.vision.cameras)
    assert (grid.rows, grid.cols, grid.cameras) == (1, 2, (cameras.FRONT_WIDE,))
    assert build.recipe_of(p).setup == (("camera_front_wide_120fov", None),)
    assert changed(p, "run.seed", 5).vision.cameras == "own_of_test:GRID"
    before = p.digest("vision.cameras")
    write(folder, SOURCE.replace("None]", "'camera_rear_tele_30fov']"))
    assert p.digest("vision.cameras") != before
    with pytest.raises(AvomniError, match="there is no camera"):
        write(folder, SOURCE.replace("None]", "'x']"))
        cameras.grid(p.vision.cameras)
    with pytest.raises(AvomniError, match="there is no grid '4-cam:4'"):
        cameras.grid("own_of_test:TEXT")


def test_missing_answers_do_not_count_as_matches(folder):
    custom = target_of(params(folder))
    truths = [Truth(1.5, 10.0 * i, 10.0 * i, 10.0 * i) for i in range(1, 4)]
    asked = [metrics.Asked(f"clip-{i}", 0, truth, 0.0) for i, truth in enumerate(truths)]
    texts = [custom.render(truth) for truth in truths]
    parts = [metrics.rows("mean", custom, asked, texts)]
    parts.append(metrics.rows("adapted", custom, asked, [None, texts[1], None]))
    figures = metrics.figures(pa.concat_tables(parts))
    assert figures["metrics"]["adapted"]["match_share"]["value"] == pytest.approx(1 / 3)


def test_every_number_has_an_error_beside_match_and_exact_shares(folder):
    custom = target_of(params(folder))
    truths = [Truth(1.5, 10.0 * i, 10.0 * i, 10.0 * i) for i in range(1, 5)]
    asked = [metrics.Asked(f"clip-{i}", 0, truth, 0.0) for i, truth in enumerate(truths)]
    mean = custom.write(constants(custom.of(truth) for truth in truths)["mean"])
    answers = [custom.render(truth) for truth in truths]
    answers[0], answers[1] = "46 km/h, 10.0 m", "no idea"
    table = metrics.rows("mean", custom, asked, [mean] * 4)
    table = pa.concat_tables([table, metrics.rows("adapted", custom, asked, answers)])
    figures = metrics.figures(table)
    values_of = {name: metric["value"] for name, metric in figures["metrics"]["adapted"].items()}
    # The second answer is invalid and counts as the mean, 90 km/h and 25 m, against 72 and 20.
    assert mean == "90 km/h, 25.0 m"
    assert values_of["kmh_mae"] == pytest.approx(np.mean([10, 18, 0, 0]))
    assert values_of["m_mae"] == pytest.approx(np.mean([0, 5, 0, 0]))
    assert (values_of["match_share"], values_of["exact_share"]) == (0.5, 0.75)
    assert figures["ladder"][0]["metric"] == "kmh_mae" and figures["valid_share"] == 0.75
    assert metrics.worst(table, "adapted", 1)[0]["clip_id"] == "clip-1"
