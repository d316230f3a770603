"""The comparison of small models covers every family and runs from its command line."""

from dataclasses import asdict

import numpy as np
import pytest

from avomni_lib import files
from avomni_lib.params import sections
from avomni_world import compare_backbones as compare
from avomni_world.tiny_base import drives as tiny_drives


@pytest.fixture
def work(tmp_path):
    """A work folder with drives of random frames in place of rendered ones."""
    for seed, count in ((tiny_drives.FIRST_SEED, 2), (tiny_drives.HELD_OUT_SEED, 1)):
        for number in range(count):
            rng = np.random.default_rng(seed + number)
            size = 2 * compare.TILE[1], 2 * compare.TILE[0]  # the tiny base's four cameras
            path = tmp_path / "drives" / f"{tiny_drives.HOME}_{seed + number}.npz"
            with files.write_whole(path) as file:
                np.savez(
                    file,
                    frames=rng.integers(0, 256, (24, *size, 3), dtype=np.uint8),
                    path_m=np.arange(24) * (1.0 + number),
                    flow=np.ones(4),
                    zoom=1.0,
                    poses=np.zeros((24 + 64, 3)),
                    speeds=np.full(24, 10.0 * (1.0 + number)),
                    lane=np.zeros((24, 4)),
                )
    return tmp_path


def test_every_family_has_a_small_model():
    assert set(compare.SMALL) == set(sections.BACKBONES)


FEW = compare.Comparison(see_steps=1, steps=2, windows=1, num_drives=2, num_held_out=1)


def assert_plausible(row):
    assert 1e6 < row["parameters"] < 2.5e6
    assert 48 < row["tokens"] <= 1024 and row["first_loss"] > 1
    # At constant speed the mean predicts without error.
    assert row["mean_mae_mps"] == pytest.approx(0, abs=1e-9)
    assert row["memory_gb"] > 0.1 and row["seconds"] > 0


@pytest.mark.parametrize("name", list(compare.SMALL)[1:])
def test_each_family_trains_for_two_steps(work, name):
    row = asdict(compare.train(name, work, FEW))
    assert_plausible(row)
    assert row["family"] == name


def test_command_trains_in_subprocesses_and_prints_a_table(work, capsys):
    name = next(iter(compare.SMALL))
    options = [f"--{key.replace('_', '-')}={value}" for key, value in asdict(FEW).items()]
    compare.main(["--work", str(work), "--family", name, *options])
    (row,) = files.read_json(work / "backbones.json")
    assert_plausible(row)
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"| `{name}` |") and f"| {row['tokens']:,} |" in line
