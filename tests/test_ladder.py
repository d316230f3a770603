"""The ladder of a real run: the tiny base, four training steps, twelve clips."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import answer, ladder, metrics
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import checkpoints, heldout, trainer, worker
from avomni_lib.training.model import adapter
from avomni_lib.training.prompt import samples
from tests import cached_run
from tests.published_set import Drive, clip_id_of

SECTIONS = {
    "processing": {"sequence_length": 16},
    "model": {"base_model": "tiny", "max_seq_length": 512, "lora_rank": 8, "lora_alpha": 8},
    "training": {
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "learning_rate": 1.0e-2,
        "gradient_checkpointing": False,
        "blind_steps": 2,
    },
    "evaluation": {"batch_size": 5, "max_new_tokens": 48},
}


def merged(*changes):
    """`SECTIONS` with these changes of single keys."""
    sections = {name: dict(keys) for name, keys in SECTIONS.items()}
    for change in changes:
        for name, keys in change.items():
            sections.setdefault(name, {}).update(keys)
    return sections


def trained(folder, *changes):
    """A trained run that is not evaluated yet; `changes` as in `merged`."""
    p = cached_run.make(folder, **merged(*changes))
    trainer.train(p)
    trainer.train_blind(p)
    return p


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def scored(p, tmp_path_factory):
    return ladder.evaluate(p, tmp_path_factory.mktemp("06_evaluate"))


def changed(p, **sections):
    plain = p.model_dump()
    for name, keys in sections.items():
        plain[name] |= keys
    return Params.from_values(plain)


def truths(split):
    """(speed, path) of the windows of a split, by the closed form of the drives."""
    values = {}
    for number in range(2 * cached_run.CLIPS_PER_CHUNK):
        if ("train", "val", "test")[number % 3] == split:
            values[clip_id_of(number)] = Drive(number)
    return values


def test_figures_have_every_row_and_follow_from_the_answers_file(p, scored):
    figures = scored.figures
    windows = ladder.held_out_windows(p)
    assert [row["name"] for row in figures["ladder"]] == list(ladder.ROWS)
    for name in ("speed_mae_mps", "displacement_mae_m", "valid_share_by_row"):
        assert list(figures[name]) == list(ladder.ROWS)
        assert all(np.isfinite(value) for value in figures[name].values())
    for row in figures["ladder"]:
        assert row["target"] == "summary_v1" and row["metric"] == "speed_mae_mps"
        assert row["value"] == figures["speed_mae_mps"][row["name"]]
        assert row["low"] <= row["value"] <= row["high"]
        apart = row["value"] - figures["speed_mae_mps"]["adapted"]
        assert row["difference_to_model"] == pytest.approx(apart)
        assert row["difference_low"] <= apart + 1e-12 and apart <= row["difference_high"] + 1e-12
        assert (row["num_windows"], row["num_clips"]) == (len(windows), 4)
    assert (figures["num_windows"], figures["num_clips"]) == (len(windows), 4)
    assert figures["split_sha256"] == split.sha256_of(p)
    assert scored.path.name == "answers.parquet"
    again = metrics.figures(metrics.read(scored.path))
    assert {key: figures[key] for key in again} == again
    assert json.loads(json.dumps(figures)) == figures
    assert [path.name for path in scored.path.parent.iterdir()] == ["answers.parquet"]


def test_answers_hold_ground_truth_and_parsed_numbers(p, scored):
    windows = ladder.held_out_windows(p)
    by_place = {(window.clip_id, window.number): i for i, window in enumerate(windows)}
    drives = truths("test")
    rows = scored.answers.to_pylist()
    assert len(rows) == len(ladder.ROWS) * len(windows)
    for row in rows:
        times_s = windows.times_us(by_place[row["clip_id"], row["window"]]) / 1e6
        path = np.diff(drives[row["clip_id"]].travelled(times_s[[0, -1]]))[0]
        assert row["displacement_true_m"] == pytest.approx(path, rel=2e-3)
        assert row["speed_true_mps"] == pytest.approx(path / 1.5, rel=2e-3)
        if row["exact"]:
            assert f"Avg Velocity: {row['speed_mps']:.2f}m/s" in row["answer"]
        assert row["country"] is not None and row["hour"] is not None
    assert scored.figures["exact_share_by_row"]["base"] > 0.5, "else this test checks little"


def test_motion_models_are_accurate_on_steady_drives(p, scored):
    """The speed varies by 1.5 m/s over 5 s, so motion models are off by less than that."""
    mae = scored.figures["speed_mae_mps"]
    assert mae["ctra"] < 1.5 and mae["constant_velocity"] < 1.5
    assert mae["mean"] > 2 * mae["constant_velocity"]


def test_constants_use_training_clips_only(p, scored):
    train = samples.train_windows(p)
    assert {train[i].clip_id for i in range(len(train))} == set(truths("train"))
    speeds = [train.truth(i).speed_mps for i in range(len(train))]
    paths = [train.truth(i).path_m for i in range(len(train))]
    for model, best in (("mean", np.mean), ("median", np.median)):
        rows = [row for row in scored.answers.to_pylist() if row["model"] == model]
        assert {row["speed_mps"] for row in rows} == {round(float(best(speeds)), 2)}
        assert {row["displacement_m"] for row in rows} == {round(float(best(paths)), 2)}


def test_base_and_adapted_answers_differ_and_match_the_trainers(p, scored):
    texts = {model: [] for model in ladder.ROWS}
    for row in scored.answers.to_pylist():
        texts[row["model"]].append(row["answer"])
    assert texts["base"] != texts["adapted"], "four large steps must change the answers"
    for name in ("blind", "trained_blind"):
        assert len(set(texts[name])) == 1 < len(set(texts["base"]))
    assert texts["shuffled"] != texts["adapted"] and texts["one_camera"] != texts["adapted"]
    before, after = answer.before(p), answer.after(p)
    windows = ladder.held_out_windows(p)
    assert heldout.thinned(len(windows), worker.NUM_ANSWERED) == [0, 3, 6, 9]
    for index, alone, both in zip((0, 3, 6, 9), before, after, strict=True):
        assert alone.adapted is None and alone.speed_adapted_mps is None
        # The base answers equal those of the model in training and of a newly loaded one.
        assert both.base == alone.base == texts["base"][index]
        assert both.adapted == texts["adapted"][index]
        assert np.array_equal(both.frames, windows.frames(index))
        assert both.clip_id == windows[index].clip_id
        assert f"{windows.truth(index).speed_mps:.2f}m/s" in both.ground_truth


class Killed(Bar):
    """A progress bar that raises KeyboardInterrupt in the adapted model's answers."""

    def update(self, amount=1, note=""):
        super().update(amount, note)
        if note == "adapted":
            raise KeyboardInterrupt


def test_interrupted_evaluation_resumes_to_the_same_bytes(p, scored, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ladder.evaluate(p, tmp_path, progress=Killed)
    assert not (tmp_path / "answers.parquet").exists()
    kept = [json.loads(line) for line in (tmp_path / ladder.KEPT_FILE).read_text().splitlines()]
    batches = -(-scored.figures["num_windows"] // 5)
    before = ["base"] * batches + ["blind"]
    before += ["shuffled"] * batches + ["one_camera"] * batches
    assert [row["model"] for row in kept] == [*before, "adapted"]
    again = ladder.evaluate(p, tmp_path)
    assert again.path.read_bytes() == scored.path.read_bytes()
    assert not (tmp_path / ladder.KEPT_FILE).exists()


def test_answers_of_another_adapter_are_discarded(p, scored, tmp_path):
    other = tmp_path / "outputs"
    shutil.copytree(p.run_dir, other / p.run.name)
    moved = changed(p, run={"outputs_dir": str(other)}, evaluation={"max_windows": 4})
    with pytest.raises(KeyboardInterrupt):
        ladder.evaluate(moved, tmp_path / "stage", progress=Killed)
    path = tmp_path / "stage" / ladder.KEPT_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    spoiled = [row | {"answers": ["spoiled"] * len(row["answers"])} for row in rows]
    path.write_text("\n".join(json.dumps(row) for row in spoiled))
    assert "spoiled" in ladder.evaluate(moved, tmp_path / "stage").answers["answer"].to_pylist()
    path.write_text("\n".join(json.dumps(row) for row in spoiled))
    record = adapter.adapter_dir(moved) / adapter.RECORD_FILE
    files.write_json(record, files.read_json(record) | {"seed": 99})
    checkpoints.write_checksums(record.parent)
    again = ladder.evaluate(moved, tmp_path / "stage").answers.to_pylist()
    assert len(again) == 4 * len(ladder.ROWS)
    assert all(row in scored.answers.to_pylist() for row in again)


def test_max_windows_thins_evenly_and_blind_adapter_is_optional(p, tmp_path):
    shutil.copytree(p.run_dir, tmp_path / p.run.name)
    thin = changed(p, run={"outputs_dir": str(tmp_path)}, evaluation={"max_windows": 4})
    plan = ladder.plan(thin)
    assert plan.figures == {"num_windows": 4, "num_clips": 4, "num_answers": 24}
    assert "thinned from 12" in str(plan)
    shutil.rmtree(adapter.adapter_dir(thin.blinded()))
    plan = ladder.plan(thin)
    assert plan.figures["num_answers"] == 20
    assert any("trained on black frames" in warning for warning in plan.warnings)
    few = ladder.evaluate(thin, tmp_path / "stage")
    assert (few.figures["num_windows"], few.figures["num_clips"]) == (4, 4)
    assert "trained_blind" not in {row["name"] for row in few.figures["ladder"]}


@given(num=st.integers(1, 500), most=st.one_of(st.none(), st.integers(1, 600)))
def test_thinned_indices_are_evenly_spaced_and_unique(num, most):
    chosen = heldout.thinned(num, most)
    assert len(chosen) == len(set(chosen)) == min(num, most or num)
    assert chosen[0] == 0 and chosen == sorted(chosen) and chosen[-1] < num
    gaps = np.diff([*chosen, num])
    assert gaps.max() - gaps.min() <= 1


def test_plan_counts_answers_and_warns_of_few_windows(p):
    plan = ladder.plan(p)
    assert plan.figures == {"num_windows": 12, "num_clips": 4, "num_answers": 72}
    assert "12 windows of 4 clips make a coarse score" in plan.warnings[0]


def test_adapter_trained_on_a_held_out_clip_is_refused(p, tmp_path):
    shutil.copytree(p.run_dir, tmp_path / p.run.name)
    leaking = changed(p, run={"outputs_dir": str(tmp_path)})
    path = adapter.adapter_dir(leaking) / adapter.RECORD_FILE
    record = files.read_json(path)
    files.write_json(
        path, record | {"training_clip_ids": [*record["training_clip_ids"], clip_id_of(2)]}
    )
    for refused in (ladder.plan, lambda p: ladder.evaluate(p, tmp_path)):
        with pytest.raises(AvomniError, match="trained on 1 of the 4 clips") as error:
            refused(leaking)
        assert clip_id_of(2) in str(error.value) and "05_train" in str(error.value)


def test_missing_input_error_names_the_stage_that_makes_it(p, tmp_path):
    untrained = changed(p, run={"outputs_dir": str(tmp_path)})
    with pytest.raises(AvomniError, match="there is no cache") as error:
        ladder.plan(untrained)
    assert "03_etl" in str(error.value)
    shutil.copytree(p.cache_dir, untrained.cache_dir)
    with pytest.raises(AvomniError, match="no trained adapter") as error:
        ladder.plan(untrained)
    assert "05_train" in str(error.value)
    with pytest.raises(AvomniError, match="no window to score"):
        ladder.plan(changed(p, processing={"sequence_length": 64}))


def test_score_is_shown_as_a_table_with_claims(scored):
    lines = str(scored).splitlines()
    assert lines[0].split()[0] == "row"
    for line, row in zip(lines[1:], scored.figures["ladder"], strict=False):
        assert ladder.ROWS[row["name"]] in line and f"{row['value']:.3f}" in line
    assert scored._repr_html_().count("<tr") == 1 + len(ladder.ROWS)
    for claim in scored.figures["claims"]:
        assert claim["text"] in lines
