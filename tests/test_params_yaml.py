"""YAML text of params files, `--set` options and values: accepted as meant, or refused."""

from pathlib import Path
from typing import Any

import pytest

from avomni_lib.__main__ import main
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.errors import AvomniError
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params

MI300X = PROJECT_ROOT / "params" / "mi300x.yaml"
BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
)


def of_text(folder: Path, text: str | bytes) -> Params:
    path = folder / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Params.from_files([path])


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("run: {seed: 1}\nmodel: {}\nrun: {seed: 2}\n", ["run stands twice, in lines 1 and 3"]),
        ("run:\n  seed: 1\n  name: a\n  seed: 1\n", ["seed stands twice, in lines 2 and 4"]),
        ("run: {seed: 1, seed: 2}", ["seed stands twice, in lines 1 and 1"]),
        ('run: {seed: 1, "seed": 2}', ["seed stands twice"]),
        ("download:\n  clips: {hours: [1]}\n  clips: {hours: [2]}", ["clips stands twice"]),
        ("run: {seed: 1}\nrun.seed: 2", ["run stands twice"]),
        ("run: {seed: 010}\nrun: {seed: 0x10}", ["010 as 8", "0x10 as 16", "run stands twice"]),
        ("download: {clips: {hours: [010]}}", ["line 1: YAML reads 010 as 8"]),
        ("download: {chunks: [0b11]}", ["reads 0b11 as 3"]),
        ("training: {max_steps: 1_000}", ["reads 1_000 as 1000"]),
        ("run: {seed: 12:30}", ["reads 12:30 as 750"]),
        ("training: {num_epochs: 1_0.5}", ["reads 1_0.5 as 10.5"]),
        ("training: {num_epochs: 1:30.5}", ["reads 1:30.5 as 90.5"]),
        ("run: {name: on}", ["reads on as True", "in quotes"]),
        ("download: {clips: {countries: [NO]}}", ["reads NO as False"]),
        ("training: {gradient_checkpointing: yes}", ["reads yes as True", "true or false"]),
        ("run: {seed: " + "9" * 5000 + "}", ["YAML reads 999"]),
        ("on: {seed: 1}", ["on is no key"]),
        ("1: {seed: 1}", ["1 is no key"]),
        ("null: {seed: 1}", ["null is no key"]),
        ("? [a, b]\n: 1", ["a list or a section is no key"]),
        ("a: &x {seed: 1}\nrun: *x", ["line 2: write the value out instead of *x"]),
        ("a: &x {seed: 1}\nrun:\n  <<: *x", ["<< is no key"]),
        (BOMB, ["write the value out instead of *a"]),
        ("run: !!python/object/apply:os.system ['true']", ["tags such as"]),
        ("run: {seed: !!int '010'}", ["tags such as tag:yaml.org,2002:int"]),
        ("run: !mine {seed: 1}", ["tags such as !mine"]),
        ("run: {seed: 1}\n---\nrun: {seed: 2}", ["not valid YAML", "single document"]),
        ("run: " + "[" * 5000, ["nested too deeply"]),
        ("run: {name: =}", ["= is no value"]),
        ("run:\n\tseed: 1", ["not valid YAML"]),
        ("run: {name: 'a\0b'}", ["not valid YAML"]),
        (b"\xff\xfer\0u\0n\0", ["cannot be read", "UTF-8"]),
        ("#" * 1_000_001, ["at most 1,000,000 characters"]),
        ("- 1\n", ["holds sections of keys, this one holds a list"]),
        ("just text", ["holds sections of keys, this one holds a str"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_ambiguous_yaml_is_refused(tmp_path: Path, text: str, messages: list[str]):
    with pytest.raises(AvomniError) as caught:
        of_text(tmp_path, text)
    for message in messages:
        assert message in str(caught.value)
    assert str(tmp_path / "own.yaml") in str(caught.value.where)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training: {learning_rate: 1e-4}", "training.learning_rate", 1e-4),
        ("training: {learning_rate: 1.0e-4}", "training.learning_rate", 1e-4),
        ("training: {learning_rate: '1.5E-4'}", "training.learning_rate", 1.5e-4),
        ("training: {num_epochs: 3}", "training.num_epochs", 3.0),
        ("processing: {stride: 4.0}", "processing.stride", 4),
        ("processing: {stride: '4'}", "processing.stride", 4),
        ("training: {gradient_checkpointing: TRUE}", "training.gradient_checkpointing", True),
        ("training: {gradient_checkpointing: 'false'}", "training.gradient_checkpointing", False),
        ("run: {name: 2026-11-22}", "run.name", "2026-11-22"),
        ("run: {name: '010'}", "run.name", "010"),
        ("download: {clips: {countries: ['NO', y]}}", "download.clips.countries", ["NO", "y"]),
        ("run.seed: 3", "run.seed", 3),
        ("\ufeffrun: {seed: 3}", "run.seed", 3),
        ("run: {seed: 3}\r\nmodel:\r\n", "run.seed", 3),
        ("run: &all {seed: 3}", "run.seed", 3),
        ("download: {chunks: [0, 0, 1]}", "download.chunks", [0, 1]),
        ("download: {chunks: [3, 1, 3, 1.0]}", "download.chunks", [3, 1]),
        ("download: {clips: {hours: [7, 7, '7']}}", "download.clips.hours", [7]),
        ("download: {clips: {clip_ids: [a, b, a]}}", "download.clips.clip_ids", ["a", "b"]),
        ("download: {clips: {splits: [val, val]}}", "download.clips.splits", ["val"]),
        ("dataset: {local_dir: ~/clips}", "dataset.local_dir", "~/clips"),
        ("dataset: {revision: null}", "dataset.revision", None),
    ],
)
def test_unambiguous_yaml_values_are_accepted(tmp_path: Path, text: str, key: str, value: Any):
    loaded = of_text(tmp_path, text).values(key)[key]
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("processing", "stride", bad) for bad in (True, 4.5, "010", "1_0", " 4", "٤", "0x4", "")),
        *(("training", "learning_rate", bad) for bad in (True, "nan", "inf", "1_0", "1e999", "")),
        *(("training", "learning_rate", bad) for bad in (float("nan"), float("inf"), -1, 1e308)),
        *(("training", "learning_rate", bad) for bad in (5e-324, 10**400)),
        *(
            ("training", "gradient_checkpointing", bad)
            for bad in (0, 1, "yes", "on", "1", "t", 1.0, None)
        ),
        *(("run", "seed", bad) for bad in (-1, 2**32, 1e20, "9" * 5000)),
        *(("run", "name", bad) for bad in ("", ".", "..", "...", "a/b", "a\n", "a\0", "x" * 300)),
        *(("run", "name", bad) for bad in (7, True, None, ["a"], " a", "/", "-a")),
        *(("run", "outputs_dir", bad) for bad in ("$HOME/a", "${HOME}/a", "~other/a", "", " ")),
        *(("run", "outputs_dir", bad) for bad in ("a\nb", "a\0b", "x" * 300, "a/" * 600, 3)),
        *(("dataset", "local_dir", bad) for bad in ("$DATA", "~me", "a\tb", "\ud800")),
        *(("model", "base_model", bad) for bad in ("$HOME/model", "~you/model", "", "a\nb")),
        *(("dataset", "repo_id", bad) for bad in ("", "x", "a/b/c", "../b", "$A/b", "a b/c", "a/")),
        *(("download", "chunks", bad) for bad in ([], [-1], [True], ["x"], 3, {"a": 1}, [[1]])),
        *(("processing", "sample_hz", bad) for bad in (0, -1, 1e12, 1e-300)),
        *(("processing", "tile_width", bad) for bad in (7, 10**9)),
        *(("processing", "num_workers", bad) for bad in (0, 10**6)),
        ("download", "target_size_gb", 1e300),
        ("download", "clips", {"countries": [""]}),
        ("download", "clips", {"countries": ["a\nb"]}),
        ("download", "clips", []),
        ("dataset", "world", 3),
        ("run", "price_per_hour", float("inf")),
    ],
)
def test_invalid_value_is_refused_by_its_name(section: str, key: str, value: Any):
    with pytest.raises(AvomniError) as caught:
        Params.from_values({section: {key: value}})
    shown = str(caught.value)
    assert f"\n  - {section}.{key}" in shown and "(got " in shown
    assert "pydantic" not in shown and len(shown) < 600


def test_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("training: {max_steps: 3}\n")
    p = Params.from_values(
        {
            "extends": "~/own.yaml",
            "run": {"outputs_dir": "~/out"},
            "dataset": {"local_dir": "~/raw"},
        }
    )
    assert (p.run_dir, p.local_dir) == (tmp_path / "out" / "demo", tmp_path / "raw")
    assert p.training.max_steps == 3


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ('dataset.revision="a #b"', "a #b"),
        ("dataset.revision='a #b'", "a #b"),
        ("dataset.revision=a #b", "a #b"),
        ("dataset.revision=#1", "#1"),
        ("dataset.revision=a: b", "a: b"),
        ("dataset.revision=a=b", "a=b"),
        ("dataset.revision=- a", "- a"),
        ("dataset.revision=*a", "*a"),
        ("dataset.revision=!x", "!x"),
        ("dataset.revision=2026-11-22", "2026-11-22"),
        ("dataset.revision=null", None),
        (" dataset.revision = v1 ", "v1"),
        ("training.learning_rate=1e-4", 1e-4),
        ("download.clips.hours=[7, 8, 7]", [7, 8]),
        ("download.clips.countries=[Germany, 'a #b']", ["Germany", "a #b"]),
        ("download.clips={hours: [7]}", {"hours": [7]}),
        ("training.gradient_checkpointing=True", True),
    ],
)
def test_set_takes_the_whole_value(change: str, value: Any):
    key = change.split("=")[0].strip()
    loaded = Params.from_files([MI300X], [change]).values(key)[key]
    assert loaded == value or {k: v for k, v in loaded.items() if v is not None} == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["processing.stride="], "no value in --set"),
        (["processing.stride"], "cannot read --set"),
        (["stride=4"], "cannot read --set"),
        (["processing..stride=4"], "cannot read --set"),
        (["=3"], "cannot read --set"),
        (["processing.stride=["], "not valid YAML"),
        ([".stride=4"], "cannot read --set"),
        (["processing.stride=010"], "YAML reads 010 as 8"),
        (["download.clips.hours=[010]"], "YAML reads 010 as 8"),
        (["download.clips.hours=[1, 2"], "not valid YAML"),
        (["download.clips.hours=[1] # mornings"], "# mornings follows it"),
        (["dataset.revision='a' b"], "--set"),
        (["training.gradient_checkpointing=yes"], "reads yes as True"),
        (["download.clips={hours: [1], hours: [2]}"], "hours stands twice"),
        (["processing.stride=4", "processing.stride=2"], "processing.stride is set twice"),
        (["processing.stride=4", "processing.stride=4"], "processing.stride is set twice"),
        (["nothing.stride=4"], "nothing: unknown parameter"),
        (["processing.strid=4"], "did you mean processing.stride?"),
        (["processing.stride.x=4"], "processing.stride: "),
        (["run.outputs_dir=$HOME"], "variables such as"),
    ],
)
def test_ambiguous_set_option_is_refused(changes: list[str], message: str):
    with pytest.raises(AvomniError) as caught:
        Params.from_files([MI300X], changes)
    assert message in str(caught.value)


def test_repeated_chunks_count_once_in_the_plan(capsys: pytest.CaptureFixture):
    named = [
        Params.from_files([MI300X], [f"download.chunks={chunks}"]) for chunks in ([0, 0, 1], [0, 1])
    ]
    assert named[0] == named[1] and named[0].digest("download") == named[1].digest("download")
    assert forecast(named[0]).num_chunks == 2
    assert named[0].limited(2).download.chunks == (0, 1)
    assert main(["plan", str(MI300X), "--set", "download.chunks=[0, 0, 1]"]) == 0
    assert "(chunks: 2;" in capsys.readouterr().out
