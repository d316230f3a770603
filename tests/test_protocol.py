"""`evaluation.protocol: pai_644`, on the rendered world with stand-in ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avomni_lib.__main__ import main
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.download import download
from avomni_lib.dataset.select import protocol as ids
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.evaluation import ladder
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from avomni_lib.training.fit import trainer, worker
from avomni_lib.training.model import adapter
from avomni_lib.training.prompt import samples

T0_US = 5_100_000


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Plain parameters of a run over twelve rendered clips of 5.6 s, some of them scored."""
    folder = tmp_path_factory.mktemp("protocol")
    values = {
        "extends": "params/demo_future.yaml",
        "run": {"name": "protocol", "outputs_dir": str(folder)},
        "dataset": {
            "local_dir": str(folder / "raw"),
            "world": {"num_chunks": 2, "clips_per_chunk": 6, "clip_seconds": 5.6},
        },
        "processing": {"sequence_length": 4, "num_workers": 1, "obstacles": False},
        "training": {"max_steps": 2, "blind_steps": 1, "heldout_windows": None, "batch_size": 2},
        "evaluation": {
            "protocol": "pai_644",
            "protocol_ids": str(folder / "ids.parquet"),
            "constrained": True,
            "max_windows": None,
            "max_new_tokens": 80,
        },
    }
    (folder / "ids.parquet").write_bytes(b"")
    p = Params.from_values(values)
    download.fetch(p, runs.open_hub(p))
    catalog = Catalog.of(p)
    chosen = [
        *catalog.clip_ids(split="test"),
        catalog.clip_ids(split="train")[0],
        "00000000-0000-4000-8000-000000000000",  # in no cache
    ]
    pq.write_table(pa.table({"key": chosen}), folder / "ids.parquet")
    build.build(p)
    return values | {"ids": chosen}


def params(values, **sections):
    plain = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    plain.pop("ids")
    for name, keys in sections.items():
        plain[name] |= keys
    return Params.from_values(plain)


def test_each_protocol_clip_has_one_window_and_is_in_no_split(values):
    p = params(values)
    windows = samples.scored_windows(p)
    clips = [windows[i].clip_id for i in range(len(windows))]
    assert clips == values["ids"][:-1]
    for i in range(len(windows)):
        assert abs(int(windows.times_us(i)[-1]) - T0_US) <= 0.5e6 / p.processing.sample_hz
        assert windows.truth(i).future.xy_m.shape == (64, 2)
    for split in ("train", "val", "test"):
        other = samples.windows_of(p, split)
        assert not {other[i].clip_id for i in range(len(other))} & set(clips)
    without_protocol = params(values, evaluation={"protocol": None, "protocol_ids": None})
    plain = samples.train_windows(without_protocol)
    assert clips[-1] in {plain[i].clip_id for i in range(len(plain))}


def test_table_has_all_rows_and_measures_and_quoted_sources(values, tmp_path):
    p = params(values)
    worker.work(p)
    worker.work(p.blinded())
    scored = ladder.evaluate(p, tmp_path)
    protocol = scored.figures["protocol"]
    assert (protocol["num_ids"], protocol["num_scored"]) == (
        len(values["ids"]),
        len(values["ids"]) - 1,
    )
    assert (
        not protocol["is_published_list"]
        and protocol["num_samples"] == 6
        and protocol["t0_s"] == 5.1
    )
    assert 0 <= protocol["most_off_t0_s"] <= 0.5 / p.processing.sample_hz
    rows = {row["name"]: row for row in protocol["rows"]}
    measured = [name for name, row in rows.items() if not row["quoted"]]
    assert measured == list(ladder.PROTOCOL_ROWS)
    for name in measured:
        for measure in ladder.MEASURES:
            assert np.isfinite(rows[name][measure]), (name, measure)
    for at in ladder.HORIZONS_S:
        assert rows["ctra"][f"min_ade_{at}_m"] == rows["ctra"][f"ade_{at}_m"]
    assert rows["ctra"]["ade_3s_m"] < rows["ctra"]["ade_6_4s_m"]
    ade = scored.figures["metrics"]["adapted"]
    assert rows["adapted"]["ade_6_4s_m"] == pytest.approx(ade["ade_m"]["value"])
    assert rows["adapted"]["min_ade_6_4s_m"] == pytest.approx(ade["min_ade6_m"]["value"])
    assert rows["Alpamayo-1.5"]["min_ade_6_4s_m"] == 0.854 and rows["Alpamayo-1.5"]["source"]
    assert rows["Qwen-Drive-1.0-4B"]["min_ade_3s_m"] == 0.34
    shown = ladder.protocol_table(scored.figures)
    assert "Alpamayo-1.5 (quoted, not run here)" in set(shown["row"])
    json.dumps(protocol)

    # An adapter that was trained on one of the clips is refused.
    record_path = adapter.adapter_dir(p) / adapter.RECORD_FILE
    record = json.loads(record_path.read_text())
    record["training_clip_ids"].append(values["ids"][-1])
    record_path.write_text(json.dumps(record))
    with pytest.raises(AvomniError, match="was trained on 1 of the"):
        ladder.plan(p)


def test_plan_lists_the_chunks_of_the_protocol_clips(values, capsys):
    p = params(values)
    [(_, value, note)], figures = ids.rows(p)
    catalog = Catalog.of(p)
    assert figures["protocol_chunks"] == sorted(
        {catalog.chunk_of(clip_id) for clip_id in values["ids"][:-1]}
    )
    assert figures["protocol_gb"] > 0 and "GB" in note or "MB" in note
    assert "1 of them this source does not have" in note and "5.1 s" in value
    elsewhere = params(values, dataset={"local_dir": "/nowhere"})
    assert "before 01_audit" in ids.rows(elsewhere)[0][0][2]
    published = params(values, evaluation={"protocol_ids": None})
    assert "not on the disk" in ids.rows(published)[0][0][2]
    path = p.run_dir / "p.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "ids"}))
    assert main(["plan", str(path), "--json"]) == 0
    assert f'"protocol_clips": {len(values["ids"])}' in capsys.readouterr().out


def test_published_ids_are_fetched_once_and_counted(values, tmp_path, monkeypatch):
    p = params(values, evaluation={"protocol_ids": None}, run={"name": "published"})
    served = tmp_path / "served.parquet"
    monkeypatch.setattr(ids, "URL", served.as_uri())
    with pytest.raises(AvomniError, match="cannot be fetched"):
        ids.clip_ids(p)
    served.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(AvomniError, match="cannot be fetched"):
        ids.clip_ids(p)
    pq.write_table(pa.table({"key": ["a", "b", "a"]}), served)
    with pytest.raises(AvomniError, match="2 clip ids, and the protocol has 644"):
        ids.clip_ids(p)
    ids.ids_file(p).unlink()
    pq.write_table(pa.table({"key": [f"clip-{n}" for n in range(644)]}), served)
    assert len(ids.clip_ids(p)) == 644
    served.unlink()
    assert len(ids.clip_ids(p)) == 644


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "no clip id"), (b"\xff\xfe\xff", "cannot be read")]
)
def test_unreadable_or_empty_ids_file_is_refused(values, tmp_path, content, reason):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(AvomniError, match=reason):
        ids.clip_ids(params(values, evaluation={"protocol_ids": str(path)}))
    path.write_text("b\na\n\nb\n")
    assert ids.clip_ids(params(values, evaluation={"protocol_ids": str(path)})) == ("b", "a")


def test_table_without_ids_is_refused(values, tmp_path):
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"url": ["x"]}), path)
    with pytest.raises(AvomniError, match="no column of clip ids"):
        ids.clip_ids(params(values, evaluation={"protocol_ids": str(path)}))


def test_params_that_contradict_the_protocol_are_refused(values):
    with pytest.raises(AvomniError) as error:
        params(
            values,
            training={"target": "summary_v1"},
            evaluation={"num_samples": 3, "temperature": 1.0, "max_windows": 5},
        )
    for message in ("scores paths", "num_samples is 3", "temperature is 1.0", "max_windows is 5"):
        assert message in str(error.value)
    with pytest.raises(AvomniError, match="names clips"):
        params(values, evaluation={"protocol": None})


def test_plan_of_05_excludes_the_protocol_clips(values):
    p = params(values)
    plan = trainer.plan(p, probe=False)
    [row] = [row for row in plan.rows if row[0] == "windows"]
    assert "pai_644" in row[2]
