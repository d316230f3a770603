"""A drive in two splits under two clip ids stops the ETL stage and training."""

import pytest
import yaml

from avomni_lib.dataset.download import download
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.training.fit import trainer
from tests import published_set, training_set
from tests.notebooks.small_run import avomni


def copy_a_clip(folder, source: int, target: int) -> None:
    """Copy clip `source` to clip `target` in every zip of the set."""
    old, new = published_set.clip_id_of(source), published_set.clip_id_of(target)
    for path in folder.rglob("*.zip"):
        members = published_set.read_zip(path)
        copies = {name.replace(old, new): data for name, data in members.items() if old in name}
        published_set.write_zip(path, members | copies)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """A run whose clip 0 is in train and, under the id of clip 2, in another split."""
    folder = tmp_path_factory.mktemp("leak")
    published = published_set.write_published_set(
        folder / "set", num_chunks=1, width=192, height=128
    )
    copy_a_clip(published, 0, 2)
    p = training_set.params(
        folder,
        training_set.make_base(folder / "base"),
        dataset={"source": "folder", "local_dir": str(published), "license_accepted": True},
        processing={"num_workers": 1},
    )
    download.fetch(p, None)
    build.build(p)
    return p


def test_etl_stage_fails_and_names_both_clips(leaking, tmp_path):
    path = tmp_path / "leaking.yaml"
    path.write_text(yaml.safe_dump(leaking.values()))
    done = avomni("run", str(path), "--only", "01", "02", "03")
    assert done.returncode == 1
    assert "near-duplicates" in done.stderr and "Traceback" not in done.stderr
    for number in (0, 2):
        assert published_set.clip_id_of(number) in done.stderr
    assert (leaking.run_dir / "02_download" / "result.json").exists()
    assert not (leaking.run_dir / "03_etl" / "result.json").exists()


def test_training_on_a_leaking_cache_is_refused(leaking):
    with pytest.raises(AvomniError, match="near-duplicates"):
        trainer.plan(leaking)
