"""Which stages are stale: through the chain, for every parameter and file, and not for a move."""

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


# The stages that are stale when a parameter changes; every parameter stands here.
STALE: dict[tuple[str, ...], list[str]] = {
    STAGES: [
        *names("dataset", "audit", "local_dir", "allow_plain_http"),
        *names("download", "max_workers", "evict_raw", "evict_shared"),
        *("vision.cameras", "processing.obstacles"),
    ],
    # It tells of the files that lie there; what a hub has is the same elsewhere.
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
        # They go with a target of paths; the clips of a protocol are not learned from.
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
    ("08_drive",): ["driving.num_episodes"],  # the run has it from then on
    (): [
        *("dataset.allow_plain_http", "download.max_workers", "download.evict_shared"),
        *("processing.engine", "processing.num_workers", "processing.clip_timeout_s"),
        *("live.record", "live.port"),
        *names("driving", "num_episodes"),  # 08_drive's, which this run has not got
    ],
}
# Another place is another run, and the window's size repeats processing.sequence_length.
ELSEWHERE = {"run.name", "run.outputs_dir", "vision.window_size"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Params:
    """A run whose seven stages are done; adapter and answers are bytes that nobody reads."""
    folder = tmp_path_factory.mktemp("done")
    p = evicting_run.params(folder, evict=False)
    published = evicting_run.write(tmp_path_factory.mktemp("published"))
    with local_hub.serve(published, evicting_run.REPO) as served:
        for name in STAGES:
            finish(p, name, served)
    return p


def finish(p: Params, name: str, served: local_hub.LocalHub | None = None, word: str = "") -> None:
    """A stage as its notebook does it, as far as files go."""
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
def own(done, tmp_path) -> Params:
    """The run in another folder, with other dates."""
    return moved(done, tmp_path / "own")


def moved(p: Params, outputs: Path) -> Params:
    shutil.copytree(p.run_dir, outputs / p.run.name, copy_function=shutil.copyfile)
    return changed_params.changed(p, "run.outputs_dir", str(outputs))


def status(p: Params) -> dict[str, str]:
    """Stage -> why it is not done; what is done is left out."""
    return {state.stage.name: state.reason for state in runs.states(p) if not state.done}


def written(p: Params, tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(p.values()))
    return str(path)


def test_every_parameter_is_in_the_table():
    known = [name for of in STALE.values() for name in of]
    assert sorted([*known, *ELSEWHERE]) == sorted(changed_params.names())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (name, stages)
        for stages, of in STALE.items()
        for name in of
        if name not in changed_params.ALONE
    ],
)
def test_a_changed_parameter_makes_exactly_the_stages_stale_that_depend_on_it(done, name, expected):
    now = changed_params.changed(done, name)
    reasons = status(now)
    assert tuple(reasons) == expected
    was, is_now = (changed_params.value_of(each, name) for each in (done, now))
    is_now = list(is_now) if isinstance(is_now, tuple) else is_now
    if name.startswith("evaluation.protocol"):
        del reasons[TILES]  # stale by the target that goes with it
    for reason in reasons.values():
        is_new = reason == "not run yet"
        assert is_new or f"{name} changed (was {was!r}, is {is_now!r})" in reason


def test_the_reason_is_told_in_the_words_of_where_it_began(done):
    reasons = status(changed_params.changed(done, "processing.sample_hz", 5.0))
    began = "processing.sample_hz changed (was 10.0, is 5.0)"
    assert reasons[ETL] == f"stale: {began}"
    for name in FROM_TILES:
        assert reasons[name] == f"stale because 03_etl is: {began}"


def test_a_stage_that_made_something_else_makes_all_after_it_stale(own):
    """Redone with other bytes: no parameter of 05's has changed."""
    slow = changed_params.changed(own, "processing.sample_hz", 5.0)
    finish(slow, ETL)
    reasons = status(slow)
    assert tuple(reasons) == FROM_TILES
    again = changed_params.changed(own, "processing.sample_hz", 10.0)
    finish(again, ETL)
    assert status(again) == {}, "back at the same bytes"
    finish(own, TRAIN, word="another adapter")
    because = "stale: 05_train made something else since"
    assert status(own) == {EVALUATE: because, LIVE: because}


def test_06_depends_on_the_cache_too(own):
    inputs = runs.read_result(own, EVALUATE)["inputs"]
    assert inputs[ETL] == runs.read_result(own, ETL)["digest"]
    assert inputs[TRAIN] == runs.read_result(own, TRAIN)["digest"]


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
def test_a_file_that_is_gone_or_not_what_was_written_is_noticed(own, name, expected):
    path = own.run_dir / name
    assert status(own) == {}
    content = path.read_bytes()

    def said() -> str:
        reasons = status(own)
        assert tuple(reasons) == expected
        assert all(name in reason for reason in reasons.values())
        return reasons[expected[0]]

    path.unlink()
    assert f"{name} is missing" in said()
    path.write_bytes(content[:-1])
    assert "has another size" in said()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "its sha256 is another" in said()
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert status(own) == {}, "another date is no other file"


@pytest.mark.parametrize("name", ["frames.npy", "track.npy", "header.json"])
def test_03_run_again_mends_the_shard_that_is_damaged_and_keeps_the_others(own, name):
    before, spoiled = evicting_run.content(own), own.cache_dir / "shard_0001" / name
    others = {path: path.stat().st_mtime_ns for path in own.cache_dir.glob("shard_000[023]/*")}
    content = spoiled.read_bytes()
    spoiled.write_bytes(
        content.replace(b"egomotion", b"egomotioN")
        if content[:1] == b"{"
        else content[:-1] + bytes([content[-1] ^ 1])
    )
    assert ETL in status(own)
    finish(own, ETL)
    assert evicting_run.content(own) == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert status(own) == {}


def test_a_shard_that_was_damaged_while_nothing_vouched_for_it_is_not_taken(own):
    """The proof is gone, as after a kill: the header alone says what the arrays should be."""
    (own.run_dir / ETL / runs.RESULT).unlink()
    path = own.cache_dir / "shard_0001" / "frames.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AvomniError, match="its sha256 is another") as caught:
        finish(own, ETL)
    assert str(path) in str(caught.value) and "run 03_etl again" in str(caught.value)
    assert runs.read_result(own, ETL) is None
    shutil.rmtree(path.parent)
    finish(own, ETL)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '"done"', "7", '{"digest": "x"}', "\udcff\udcfe"]
)
def test_a_proof_that_cannot_be_read_proves_nothing(own, text):
    (own.run_dir / ETL / runs.RESULT).write_text(text, errors="surrogateescape")
    reasons = status(own)
    assert reasons[ETL] == "stale: its result.json is damaged"
    assert reasons[TRAIN] == "stale: 03_etl has to run first"
    assert "03_etl" in reasons[EVALUATE]


def test_a_proof_of_another_version_is_said_to_be_so(own):
    path = own.run_dir / ETL / runs.RESULT
    result = json.loads(path.read_text()) | {"outputs": {"/elsewhere/frames.npy": 12}}
    del result["format"]
    path.write_text(json.dumps(result))
    assert "another version of this program ran it" in status(own)[TRAIN]


def by_zip(run: Path, target: Path) -> None:
    shutil.unpack_archive(shutil.make_archive(str(target), "zip", run.parent, run.name), target)


def by_copy(run: Path, target: Path) -> None:
    shutil.copytree(run, target / run.name, copy_function=shutil.copyfile)


def by_archive(run: Path, target: Path) -> None:
    shutil.copytree(run, target / run.name)  # dates are kept


@pytest.mark.parametrize("move", [by_zip, by_copy, by_archive])
def test_a_run_that_was_moved_to_another_machine_is_not_stale(own, tmp_path, move):
    target = tmp_path / "laptop" / "av-omni" / "outputs"
    target.parent.mkdir(parents=True)
    move(own.run_dir, target)
    shutil.rmtree(own.run_dir)
    there = changed_params.changed(own, "run.outputs_dir", str(target))
    assert status(there) == {}
    for checked in there.run_dir.rglob(".checked.json"):
        checked.unlink()
    assert status(there) == {}
    # Raw files need not come along, nor lie at the same place.
    away = changed_params.changed(there, "dataset.local_dir", str(tmp_path / "nothing here"))
    assert list(status(away)) == [AUDIT]
    for path in there.run_dir.glob("*/*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_a_file_of_known_size_and_date_is_not_read_again_and_verify_reads_it(own, capsys):
    """What `status` cannot see, so that it is quick over a cache of 100 GB."""
    assert status(own) == {}, "the first look after the copy, which reads all"
    path = own.cache_dir / "shard_0001" / "frames.npy"
    date, content = path.stat().st_mtime_ns, path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(date, date))
    assert status(own) == {}
    assert main(["verify", str(own.cache_dir)]) == 1
    assert "shard_0001/frames.npy: has changed" in capsys.readouterr().err
    os.utime(path)
    assert "its sha256 is another" in status(own)[ETL]


@pytest.mark.parametrize("extra", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_stage_on_a_stale_one_is_refused_and_tells_no_old_figure(own, tmp_path, capsys, extra):
    now = changed_params.changed(own, "processing.sample_hz", 5.0)
    for only, name in (("05", TRAIN), ("06", EVALUATE)):
        assert main(["run", written(now, tmp_path), "--only", only, *extra]) == 1
        told = capsys.readouterr()
        assert f"{name} needs what 03_etl makes, and 03_etl is not done" in told.err
        assert "processing.sample_hz changed (was 10.0, is 5.0)" in told.err
        assert "--from 03_etl" in told.err and "the old loss" not in told.out + told.err
        assert runs.read_result(own, name) is not None, "nothing was begun"
    other = changed_params.changed(own, "training.learning_rate", 0.5)
    assert main(["run", written(other, tmp_path), "--only", "06", *extra]) == 1
    assert "05_train is not done: stale: training.learning_rate" in capsys.readouterr().err
    assert main(["run", written(own, tmp_path), "--only", "05", *extra]) == 0
    told = capsys.readouterr()
    assert "skip" in told.out and "the old loss" in told.out


def test_what_would_run_follows_the_chain(own, tmp_path, capsys):
    now = changed_params.changed(own, "processing.fit", "crop")
    assert main(["run", written(now, tmp_path), "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [row["stage"] for row in rows if row["action"] == "would run"] == list(FROM_ETL)
    assert main(["run", written(now, tmp_path), "--dry-run", "--from", "03", "--json"]) == 0
