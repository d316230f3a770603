"""An adapter is refused with parameters, a cache or a base model that it was not trained with."""

import shutil

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.evaluation import answer, ladder
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone, in_4bit
from avomni_lib.training.export import merge
from avomni_lib.training.model import adapter, load, model_input
from avomni_lib.training.prompt import samples
from tests import cached_training, changed_params, training_set

# Parameters that change what the model sees of a window or must answer. A new parameter belongs
# here, or with a reason in `model_input.NOT_SEEN`.
SEEN = {
    "processing.sequence_length",
    "processing.sample_hz",
    "processing.tile_width",
    "processing.tile_height",
    "processing.fit",
    "processing.storage",
    "prompt.ego_history",
    "model.backbone",
    "training.target",
    "training.blind",
}
# These change it too, and are compared by a value derived from them.
REPORTED_AS = {
    "model.base_model": "base_digest",
    "model.load_in_4bit": "quantisation",
    "prompt.question": "question",
    "vision.cameras": "vision.camera_setup",
    "processing.past.seconds": "offsets",
    "processing.past.hz": "offsets",
    "processing.past.scale": "past_scale",
}
NAMES = changed_params.names()


@pytest.fixture(scope="module")
def p(tmp_path_factory, base_folder):
    """A run with a cache and the record of an untrained adapter."""
    p = cached_training.make(tmp_path_factory.mktemp("run"), prompt={"ego_history": True})
    write_record(p)
    write_record(p.blinded())
    return p


def write_record(p):
    from transformers import AutoTokenizer

    location = p.model.base_model
    windows = samples.train_windows(p)
    conversation = samples.conversation_of(
        p, AutoTokenizer.from_pretrained(location), backbone("qwen3_vl")
    )
    choices = {"quantisation": in_4bit(p)}
    record = adapter.record_of(p, windows, conversation, load.base_digest(location, None), choices)
    files.write_json(adapter.adapter_dir(p) / adapter.RECORD_FILE, record)


def header_of(p):
    return samples.train_windows(p).cache.header


def refusal(p, now, header=None):
    with pytest.raises(AvomniError) as caught:
        load.check_adapter(adapter.adapter_dir(p), now, header)
    assert (
        str(adapter.adapter_dir(p)) in str(caught.value)
        and "05_train" in str(caught.value)
        or ("--from 03_etl" in str(caught.value))
    )
    return str(caught.value)


def test_every_parameter_is_classified():
    unseen = [name for names in model_input.NOT_SEEN.values() for name in names]
    assert set(model_input.parameter_names()) == SEEN
    assert sorted([*SEEN, *unseen]) == sorted(NAMES), "each once, and none that does not exist"


# These need a target with waypoints, which the model would see as a change.
WITH_A_TARGET = {"evaluation.protocol", "evaluation.protocol_ids"}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in changed_params.ALONE | WITH_A_TARGET]
)
def test_adapter_is_refused_only_if_a_parameter_seen_by_the_model_changed(p, name, tmp_path):
    value = None
    if name == "model.base_model":
        value = str(training_set.make_base(tmp_path / "base", seed=1))
    now = changed_params.changed(p, name, value)
    if name not in SEEN | set(REPORTED_AS):
        load.check_adapter(adapter.adapter_dir(p), now)
        return
    message = refusal(p, now)
    reported_name = REPORTED_AS.get(name, name)
    then_value, now_value = (changed_params.value_of(params, name) for params in (p, now))
    assert f"- {reported_name}: trained with " in message
    if reported_name == name:
        assert f"- {name}: trained with {then_value!r}, now {now_value!r}" in message


def test_same_parameters_and_cache_are_accepted(p):
    load.check_adapter(adapter.adapter_dir(p), p)
    load.check_adapter(adapter.adapter_dir(p), p, header_of(p))
    load.check_adapter(adapter.adapter_dir(p.blinded()), p.blinded(), header_of(p))


def test_all_differences_are_reported_at_once(p):
    now = p
    for name in ("processing.sample_hz", "processing.fit", "vision.cameras"):
        now = changed_params.changed(now, name)
    message = refusal(p, now)
    for name in ("processing.sample_hz", "processing.fit", "vision.camera_setup", "question"):
        assert message.count(f"\n  - {name}: trained with ") == 1


def test_every_field_of_the_record_is_compared(p):
    """Also fields that follow from the code, such as the text of the question."""
    path = adapter.adapter_dir(p) / adapter.RECORD_FILE
    record, header = files.read_json(path), header_of(p)
    leaves = model_input.flat(record["sees"])
    for name in ("question", "prompt", "past_motion", "answer", "end_of_answer", "pixels.mean"):
        assert leaves[name]
    try:
        for name, value in leaves.items():
            changed = {"sees": _with(record["sees"], name, "another value")}
            files.write_json(path, record | changed)
            message = refusal(p, p, header)
            assert f"\n  - {name}: trained with 'another value', now " in message
            assert message.count("\n  - ") == 1, name
            changed = {"sees": _with(record["sees"], name, None, drop=True)}
            files.write_json(path, record | changed)
            assert f"\n  - {name}: trained with (not recorded), now " in refusal(p, p, header), (
                name,
                value,
            )
    finally:
        files.write_json(path, record)


def _with(sees, name, value, drop=False):
    """Copy nested values with one leaf changed; parameter names contain dots themselves."""
    copy = dict(sees)
    if name in copy:
        copy[name] = value
        if drop:
            del copy[name]
        return copy
    first, _, rest = name.partition(".")
    return copy | {first: _with(copy[first], rest, value, drop)}


@pytest.mark.parametrize(
    "record", [{}, {"sees": {}}, {"sees": [1]}, {"sees": None, "target": "summary_v1"}]
)
def test_record_of_an_earlier_version_is_refused_with_a_remedy(p, tmp_path, record):
    files.write_json(tmp_path / adapter.RECORD_FILE, record)
    with pytest.raises(AvomniError, match="does not say what the model saw") as caught:
        load.check_adapter(tmp_path, p)
    assert "run 05_train again" in str(caught.value)


def test_base_model_may_move_but_not_change(p, tmp_path):
    base = p.model.base_model
    moved = shutil.copytree(base, tmp_path / "moved")
    load.check_adapter(
        adapter.adapter_dir(p), changed_params.changed(p, "model.base_model", str(moved))
    )
    for name in ("tokenizer.json", "config.json", "model.safetensors", "chat_template.jinja"):
        other = shutil.copytree(base, tmp_path / name)
        path = other / name
        if not path.exists():
            assert name == "chat_template.jinja"
        content = path.read_bytes() if path.exists() else b""
        path.write_bytes(content.replace(b"{", b"{ ", 1) if content else b"{{ 1 }}")
        now = changed_params.changed(p, "model.base_model", str(other))
        assert "- base_digest: trained with " in refusal(p, now), name


def test_cache_header_is_compared_too(p):
    header = header_of(p)
    assert model_input.shown(header)["sample_hz"] == 10.0
    for name, value in model_input.flat(header).items():
        other = model_input.flat(_with(header, name, "another"))
        assert other[name] == "another"
        changed = _with(header, name, "another")
        if name.partition(".")[0] in model_input.NOT_SHOWN:
            load.check_adapter(adapter.adapter_dir(p), p, changed)
        else:
            message = refusal(p, p, changed)
            assert f"- cache.{name}: trained with " in message and "now 'another'" in message, value


@pytest.fixture
def rebuilt(p, tmp_path):
    """The run with its cache rebuilt at half the rate: old and new parameters."""
    folder = tmp_path / "outputs"
    shutil.copytree(p.run_dir, folder / p.run.name)
    original = changed_params.changed(p, "run.outputs_dir", str(folder))
    slow = changed_params.changed(original, "processing.sample_hz", 5.0)
    slow = changed_params.changed(slow, "processing.sequence_length", 2)
    build.build(slow)
    return original, slow


def test_every_stage_refuses_a_cache_of_another_rate(rebuilt):
    original, slow = rebuilt
    stages = [
        lambda p: ladder.plan(p),
        lambda p: ladder.evaluate(p, p.run_dir / "06_evaluate"),
        lambda p: answer.after(p),
    ]
    for use in stages:
        with pytest.raises(AvomniError, match="sample_hz: trained with 10.0, now 5.0"):
            use(slow)
        # The parameters are those of the training, but the cache was built with others.
        with pytest.raises(
            AvomniError, match="sample_hz: built with 5.0, .* ask for 10.0"
        ) as caught:
            use(original)
        assert "03_etl" in str(caught.value)
    with pytest.raises(AvomniError, match="sample_hz: trained with 10.0, now 5.0"):
        merge.merge(slow)
    with pytest.raises(AvomniError, match="sample_hz: built with 5.0"):
        samples.train_windows(original)


def test_blind_adapter_is_compared_with_its_own_record(p, tmp_path):
    shutil.copytree(p.run_dir, tmp_path / p.run.name)
    moved = changed_params.changed(p, "run.outputs_dir", str(tmp_path))
    folder = adapter.adapter_dir(moved.blinded())
    record = files.read_json(folder / adapter.RECORD_FILE)
    sees = record["sees"] | {"processing.fit": "crop"}
    files.write_json(folder / adapter.RECORD_FILE, record | {"sees": sees})
    with pytest.raises(AvomniError, match="processing.fit: trained with 'crop'") as caught:
        ladder.plan(moved)
    assert str(folder) in str(caught.value)
    with pytest.raises(AvomniError, match="training.blind: trained with True, now False"):
        load.check_adapter(folder, moved)


def test_equal_values_of_another_type_are_accepted(p):
    plain = p.values()
    plain["processing"]["sample_hz"] = int(plain["processing"]["sample_hz"])
    load.check_adapter(adapter.adapter_dir(p), Params.from_values(plain), header_of(p))
