"""Which stages become stale when a parameter or a file changes; moving a run makes none stale."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from avomni_lib.__main__ import main
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import changed_params, evicting_run, local_hub

STAGES = tuple(stage.name for stage in runs.STAGES)
AUDIT, DOWNLOAD, ETL, TILES, TRAIN, EVALUATE, LIVE = STAGES
FROM_ETL, FROM_TILES = STAGES[2:], STAGES[3:]


def names(section: str, *but: str) -> list[str]:
    return [
        name
        for name in changed_params.names()
        if name.startswith(f"{section}.") and name.partition(".")[2] not in but
    ]


# Stages -> the parameters whose change makes exactly these stale; every parameter is listed.
STALE: dict[tuple[str, ...], list[str]] = {
    STAGES: [
        *names("dataset", "audit", "local_dir", "allow_plain_http"),
        *names("download", "max_workers", "evict_raw", "evict_shared"),
        *("vision.cameras", "processing.obstacles"),
    ],
    # 01 reports on local files; the content of a hub does not depend on the local folder.
    (AUDIT,): ["dataset.audit", "dataset.local_dir"],
    (AUDIT, *FROM_ETL): ["processing.horizon_s"],
    (ETL,): ["download.evict_raw"],
    FROM_ETL: [
        f"processing.{key}"
        for key in ("sample_hz", "tile_width", "tile_height", "fit", "align", "decoder", "storage")
    ],
    FROM_TILES: [
        *("processing.sequence_length", "processing.stride", *names("prompt")),
        *names("processing.past"),
        # A protocol needs a target with paths, and its clips are not trained on.
        *("evaluation.protocol", "evaluation.protocol_ids"),
        *names("model", "backend", "lora_alpha", "lora_dropout"),
        *(
            f"training.{key}"
            for key in (
                *("target", "batch_size", "gradient_accumulation_steps", "num_processes"),
                *("num_epochs", "max_steps", "optimizer", "gradient_checkpointing"),
            )
        ),
    ],
    (TILES,): ["run.price_per_hour"],
    (TRAIN, EVALUATE, LIVE): [
        *("run.seed", "model.backend", "model.lora_alpha", "model.lora_dropout"),
        *(
            f"training.{key}"
            for key in (
                *("learning_rate", "lr_scheduler", "warmup_ratio", "weight_decay"),
                *("max_grad_norm", "save_steps", "save_total_limit", "logging_steps"),
                *("report_to", "patience", "heldout_windows", "blind_steps", "blind"),
            )
        ),
    ],
    (EVALUATE,): names(
        "evaluation", "split", "max_new_tokens", "constrained", "protocol", "protocol_ids"
    ),
    (EVALUATE, LIVE): [f"evaluation.{key}" for key in ("split", "max_new_tokens", "constrained")],
    (LIVE,): names("live", "record", "port"),
    ("08_drive",): ["driving.num_episodes"],  # setting it adds 08_drive to the run
    (): [
        *("dataset.allow_plain_http", "download.max_workers", "download.evict_shared"),
        *("processing.engine", "processing.num_workers", "processing.clip_timeout_s"),
        *("live.record", "live.port"),
        *names("driving", "num_episodes"),  # 08_drive's, which this run has not got
    ],
}
# Another folder is another run; vision.window_size repeats processing.sequence_length.
ELSEWHERE = {"run.name", "run.outputs_dir", "vision.window_size"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Params:
    """A run whose seven stages are done; adapter and answers are placeholder bytes."""
    folder = tmp_path_factory.mktemp("done")
    p = evicting_run.params(folder, evict=False)
    published = evicting_run.write(tmp_path_factory.mktemp("published"))
    with local_hub.serve(published, evicting_run.REPO) as served:
        for name in STAGES:
            finish(p, name, served)
    return p


def finish(p: Params, name: str, served: local_hub.LocalHub | None = None, word: str = "") -> None:
    """Finishes a stage with the files that its notebook would write."""
    if name in (DOWNLOAD, ETL):
        evicting_run.finish(p, name, served)
        return
    stage = runs.start(p, name)
    if name == AUDIT:
        report = p.run_dir / AUDIT / "audit.json"
        report.write_text("{}")
        stage.finish({}, [report], digest="the same")
    elif name == TRAIN:
        adapter = p.run_dir / "adapter"
        adapter.mkdir(exist_ok=True)
        for file in ("adapter_model.safetensors", "record.json"):
            (adapter / file).write_text(f"{file} {word}")
        stage.finish({"headline": "the old loss"}, sorted(adapter.iterdir()))
    elif name == EVALUATE:
        for file in ("answers.parquet", "report.html"):
            (stage.folder / file).write_text(file)
        stage.finish({}, sorted(stage.folder.glob("*.*t*")))
    else:
        stage.finish({})


@pytest.fixture
def copied(done, tmp_path) -> Params:
    """A copy of the run in another folder, with other dates."""
    return moved(done, tmp_path / "own")


def moved(p: Params, outputs: Path) -> Params:
    shutil.copytree(p.run_dir, outputs / p.run.name, copy_function=shutil.copyfile)
    return changed_params.changed(p, "run.outputs_dir", str(outputs))


def status(p: Params) -> dict[str, str]:
    """Stage -> why it is not done, without the stages that are done."""
    return {state.stage.name: state.reason for state in runs.states(p) if not state.done}


def written(p: Params, tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(p.values()))
    return str(path)


def test_staleness_table_lists_every_parameter():
    known = [name for keys in STALE.values() for name in keys]
    assert sorted([*known, *ELSEWHERE]) == sorted(changed_params.names())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (name, stages)
        for stages, keys in STALE.items()
        for name in keys
        if name not in changed_params.ALONE
    ],
)
def test_changed_parameter_makes_only_dependent_stages_stale(done, name, expected):
    now = changed_params.changed(done, name)
    reasons = status(now)
    assert tuple(reasons) == expected
    was, is_now = (changed_params.value_of(p, name) for p in (done, now))
    is_now = list(is_now) if isinstance(is_now, tuple) else is_now
    if name.startswith("evaluation.protocol"):
        del reasons[TILES]  # stale by the target that goes with it
    for reason in reasons.values():
        is_new = reason == "not run yet"
        assert is_new or f"{name} changed (was {was!r}, is {is_now!r})" in reason


def test_later_stages_repeat_the_original_reason(done):
    reasons = status(changed_params.changed(done, "processing.sample_hz", 5.0))
    cause = "processing.sample_hz changed (was 10.0, is 5.0)"
    assert reasons[ETL] == f"stale: {cause}"
    for name in FROM_TILES:
        assert reasons[name] == f"stale because 03_etl is: {cause}"


def test_changed_output_makes_later_stages_stale(copied):
    """03 is redone with other bytes; no parameter of 05 has changed."""
    changed = changed_params.changed(copied, "processing.sample_hz", 5.0)
    finish(changed, ETL)
    reasons = status(changed)
    assert tuple(reasons) == FROM_TILES
    restored = changed_params.changed(copied, "processing.sample_hz", 10.0)
    finish(restored, ETL)
    assert status(restored) == {}, "back at the same bytes"
    finish(copied, TRAIN, word="another adapter")
    because = "stale: 05_train made something else since"
    assert status(copied) == {EVALUATE: because, LIVE: because}


def test_06_records_the_digests_of_cache_and_adapter(copied):
    inputs = runs.read_result(copied, EVALUATE)["inputs"]
    assert inputs[ETL] == runs.read_result(copied, ETL)["digest"]
    assert inputs[TRAIN] == runs.read_result(copied, TRAIN)["digest"]


FILES = {
    "01_audit/audit.json": (AUDIT,),
    "chosen.json": STAGES[1:],
    "split.json": FROM_ETL,
    "cache/clips.json": FROM_ETL,
    "cache/shard_0002/header.json": FROM_ETL,
    "cache/shard_0001/frames.npy": FROM_ETL,
    "cache/shard_0003/track.npy": FROM_ETL,
    "adapter/adapter_model.safetensors": (TRAIN, EVALUATE, LIVE),
    "adapter/record.json": (TRAIN, EVALUATE, LIVE),
    "06_evaluate/answers.parquet": (EVALUATE,),
    "06_evaluate/report.html": (EVALUATE,),
}


@pytest.mark.parametrize(("name", "expected"), FILES.items(), ids=FILES)
def test_missing_or_changed_file_makes_stages_stale(copied, name, expected):
    path = copied.run_dir / name
    assert status(copied) == {}
    content = path.read_bytes()

    def first_reason() -> str:
        reasons = status(copied)
        assert tuple(reasons) == expected
        assert all(name in reason for reason in reasons.values())
        return reasons[expected[0]]

    path.unlink()
    assert f"{name} is missing" in first_reason()
    path.write_bytes(content[:-1])
    assert "has another size" in first_reason()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "its sha256 is another" in first_reason()
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert status(copied) == {}, "another date is no other file"


@pytest.mark.parametrize("name", ["frames.npy", "track.npy", "header.json"])
def test_rerunning_03_rebuilds_only_the_damaged_shard(copied, name):
    before, damaged = evicting_run.content(copied), copied.cache_dir / "shard_0001" / name
    others = {path: path.stat().st_mtime_ns for path in copied.cache_dir.glob("shard_000[023]/*")}
    content = damaged.read_bytes()
    damaged.write_bytes(
        content.replace(b"egomotion", b"egomotioN")
        if content[:1] == b"{"
        else content[:-1] + bytes([content[-1] ^ 1])
    )
    assert ETL in status(copied)
    finish(copied, ETL)
    assert evicting_run.content(copied) == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert status(copied) == {}


def test_damaged_shard_is_rejected_without_a_result_file(copied):
    """Without result.json, as after a kill, only the shard's header holds the hashes."""
    (copied.run_dir / ETL / runs.RESULT).unlink()
    path = copied.cache_dir / "shard_0001" / "frames.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AvomniError, match="its sha256 is another") as caught:
        finish(copied, ETL)
    assert str(path) in str(caught.value) and "run 03_etl again" in str(caught.value)
    assert runs.read_result(copied, ETL) is None
    shutil.rmtree(path.parent)
    finish(copied, ETL)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '"done"', "7", '{"digest": "x"}', "\udcff\udcfe"]
)
def test_unreadable_result_file_makes_the_stage_stale(copied, text):
    (copied.run_dir / ETL / runs.RESULT).write_text(text, errors="surrogateescape")
    reasons = status(copied)
    assert reasons[ETL] == "stale: its result.json is damaged"
    assert reasons[TRAIN] == "stale: 03_etl has to run first"
    assert "03_etl" in reasons[EVALUATE]


def test_result_file_of_another_version_is_reported(copied):
    path = copied.run_dir / ETL / runs.RESULT
    result = json.loads(path.read_text()) | {"outputs": {"/elsewhere/frames.npy": 12}}
    del result["format"]
    path.write_text(json.dumps(result))
    assert "another version of this program ran it" in status(copied)[TRAIN]


def by_zip(run: Path, target: Path) -> None:
    shutil.unpack_archive(shutil.make_archive(str(target), "zip", run.parent, run.name), target)


def by_copy(run: Path, target: Path) -> None:
    shutil.copytree(run, target / run.name, copy_function=shutil.copyfile)


def by_archive(run: Path, target: Path) -> None:
    shutil.copytree(run, target / run.name)  # dates are kept


@pytest.mark.parametrize("move", [by_zip, by_copy, by_archive])
def test_moved_run_is_not_stale(copied, tmp_path, move):
    target = tmp_path / "laptop" / "av-omni" / "outputs"
    target.parent.mkdir(parents=True)
    move(copied.run_dir, target)
    shutil.rmtree(copied.run_dir)
    moved_run = changed_params.changed(copied, "run.outputs_dir", str(target))
    assert status(moved_run) == {}
    for checked in moved_run.run_dir.rglob(".checked.json"):
        checked.unlink()
    assert status(moved_run) == {}
    # The raw files may be missing or in another folder.
    without_raw = changed_params.changed(
        moved_run, "dataset.local_dir", str(tmp_path / "nothing here")
    )
    assert list(status(without_raw)) == [AUDIT]
    for path in moved_run.run_dir.glob("*/*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_status_trusts_size_and_date_but_verify_reads_the_file(copied, capsys):
    """`status` does not read such files again, to be quick on a cache of 100 GB."""
    assert status(copied) == {}, "the first look after the copy, which reads all"
    path = copied.cache_dir / "shard_0001" / "frames.npy"
    date, content = path.stat().st_mtime_ns, path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(date, date))
    assert status(copied) == {}
    assert main(["verify", str(copied.cache_dir)]) == 1
    assert "shard_0001/frames.npy: has changed" in capsys.readouterr().err
    os.utime(path)
    assert "its sha256 is another" in status(copied)[ETL]


@pytest.mark.parametrize("extra", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_stage_after_a_stale_one_is_refused_without_old_figures(copied, tmp_path, capsys, extra):
    now = changed_params.changed(copied, "processing.sample_hz", 5.0)
    for only, name in (("05", TRAIN), ("06", EVALUATE)):
        assert main(["run", written(now, tmp_path), "--only", only, *extra]) == 1
        output = capsys.readouterr()
        assert f"{name} needs what 03_etl makes, and 03_etl is not done" in output.err
        assert "processing.sample_hz changed (was 10.0, is 5.0)" in output.err
        assert "--from 03_etl" in output.err and "the old loss" not in output.out + output.err
        assert runs.read_result(copied, name) is not None, "nothing was begun"
    other = changed_params.changed(copied, "training.learning_rate", 0.5)
    assert main(["run", written(other, tmp_path), "--only", "06", *extra]) == 1
    assert "05_train is not done: stale: training.learning_rate" in capsys.readouterr().err
    assert main(["run", written(copied, tmp_path), "--only", "05", *extra]) == 0
    output = capsys.readouterr()
    assert "skip" in output.out and "the old loss" in output.out


def test_dry_run_lists_every_dependent_stage(copied, tmp_path, capsys):
    now = changed_params.changed(copied, "processing.fit", "crop")
    assert main(["run", written(now, tmp_path), "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [row["stage"] for row in rows if row["action"] == "would run"] == list(FROM_ETL)
    assert main(["run", written(now, tmp_path), "--dry-run", "--from", "03", "--json"]) == 0
