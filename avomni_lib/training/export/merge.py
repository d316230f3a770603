"""Merges a trained adapter into the base model's weights, in 16 bit.

The adapter was trained on the dequantised 4-bit weights, and is merged into these. The original
16-bit weights differ: NF4 changes a weight by 9 % of the standard deviation (rms, for normally
distributed weights), and the adapter learned to compensate for that; merged into the originals, it
would correct an error that is not there.

Merging adds one rounding after the sum: 0.17 % of the standard deviation in bfloat16, 0.02 % in
float16.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError, pick
from avomni_lib.params import Params
from avomni_lib.plan import Bar, gigabytes
from avomni_lib.training.backbones import backbone
from avomni_lib.training.export.card import card
from avomni_lib.training.fit.checkpoints import rename_folder
from avomni_lib.training.model import adapter, load, model_path, private

KIND = "merged"
DTYPES = {"bfloat16": 2, "float16": 2}  # bytes per number
SHARD_SIZE = "5GB"  # several files instead of one of 17 GB
# Tokenizer, config and template; the 8B's tokenizer has 11 MB.
SMALL_FILES_BYTES = 32 << 20
PROCESSOR_FILES = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    "chat_template.json",
)


def merged_dir(p: Params) -> Path:
    """Default folder of a run's merged model."""
    return p.run_dir / KIND


def merge(
    p: Params,
    folder: Path | None = None,
    progress: type[Bar] = Bar,
    dtype: str = "bfloat16",
    figures: Mapping[str, Any] | None = None,
    score: Mapping[str, Any] | None = None,
) -> Path:
    """Write the run's base model and adapter as one model that plain transformers can load.

    The folder appears atomically; after a kill or a full disk the next call starts over. It needs
    memory for the model in the training's dtype: 18 GB for an 8B on an accelerator, 35 on a CPU.

    Args:
        folder: Output folder; None is `merged_dir(p)`. A merged model there is replaced.
        progress: One unit per step: load, merge, write.
        dtype: "bfloat16", or "float16", which rounds eight times finer but ends at 65,504.
        figures: Figures of 05, for the card.
        score: Figures of 06, for the card.

    Returns:
        The folder.

    Raises:
        AvomniError: there is no adapter, it is damaged or of another base model; the folder has
            other contents; there is not enough memory or disk space; `dtype` overflows.
    """
    num_bytes = pick(DTYPES, dtype, "dtype", "dtype")
    source, folder = adapter.adapter_dir(p), Path(folder or merged_dir(p)).absolute()
    load.check_adapter(source, p)
    adapter.check_whole(source)
    record = adapter.read_record(source) | {
        "kind": KIND,
        "dtype": dtype,
        "adapter_sha256": files.sha256_file(source / adapter.WEIGHTS_FILE),
    }
    _refuse_to_replace(folder)
    num_numbers = count_numbers(p)
    files.need_room(
        folder, num_numbers * num_bytes + SMALL_FILES_BYTES, f"a merged model in {dtype}"
    )
    _need_memory(num_numbers)
    partial, lock = (folder.with_name(f".{folder.name}.{end}") for end in ("unfinished", "lock"))
    with (
        files.hold(lock, "another process is writing this merged model"),
        progress(total=3, unit="step", label="merging") as bar,
        _whole_or_nothing(partial),
    ):
        # With transformers whatever the training's backend, without Unsloth's patches.
        section = p.model.model_copy(update={"backend": "transformers"})
        plain = p.model_copy(update={"model": section})
        base = load.load_base(plain)
        bar.update(1, note="base model loaded")
        folded = _fold(base.model, source, plain, dtype)
        bar.update(1, note="adapter folded in")
        folded.save_pretrained(partial, max_shard_size=SHARD_SIZE)
        base.tokenizer.save_pretrained(partial)
        _write_processor(p, folded.config, partial)
        files.write_text(partial / "README.md", card(record, figures, KIND, score))
        files.write_json(partial / adapter.RECORD_FILE, record)
        rename_folder(partial, folder)
        shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)
        bar.update(1, note="written")
    del base, folded
    gc.collect()
    return folder


def count_numbers(p: Params) -> int:
    """Number of the base model's weights, from its config alone."""
    return sum(parameter.numel() for parameter in load.empty_model(p).parameters())


def _fold(base: Any, source: Path, p: Params, dtype: str) -> Any:
    """The dequantised base model with the adapter merged, rounded to `dtype`."""
    import torch

    folded = load.load_adapter(_out_of_4_bit(base), source, p).merge_and_unload()
    folded.to(getattr(torch, dtype))
    for name, parameter in folded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise AvomniError(
                f"{name} has numbers that are not finite in {dtype}",
                where=str(source),
                fix="export with --dtype bfloat16, or lower training.learning_rate and run "
                "05_train again",
            )
    for part in folded.config.sub_configs:
        if hasattr(folded.config, part):
            getattr(folded.config, part).dtype = dtype
    return folded


def _out_of_4_bit(base: Any) -> Any:
    from transformers.utils import logging

    if getattr(base, "hf_quantizer", None) is None:
        return base
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns about the dtype, which is as intended
    try:
        base = base.dequantize()
    except NotImplementedError as error:
        raise AvomniError(
            f"the base model cannot be turned back into 16 bit: {error}",
            where="model.base_model",
            fix="serve the adapter beside its base model, or train on a base in NF4",
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    private.forget_quantised_loading(base)
    return base


def _refuse_to_replace(folder: Path) -> None:
    """Refuse to replace a folder that is not a merged model, as `--out` may name any folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    record = folder / adapter.RECORD_FILE
    if not record.exists() or files.read_json(record).get("kind") != KIND:
        raise AvomniError(
            "the folder holds something that is no merged model",
            where=str(folder),
            fix="name a new folder with --out",
        )


def _need_memory(num_numbers: int) -> None:
    device = hardware.device().value
    needed = num_numbers * (4 if hardware.dtype(device).value == "float32" else 2)
    memory = hardware.device_memory(device) or hardware.host_memory()
    if needed > memory.free:
        raise AvomniError(
            f"merging takes {gigabytes(needed)} of memory, {gigabytes(memory.free)} are free",
            where=device,
            fix="end what else uses the memory, or merge on a machine with more; serving the "
            "adapter beside its base model needs no merging",
        )


@contextlib.contextmanager
def _whole_or_nothing(partial: Path) -> Iterator[None]:
    """Create an empty folder, and remove it if the block fails.

    Raises:
        AvomniError: the disk is full.
    """
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir(parents=True)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors wraps OSError in its own exception.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise AvomniError(
                f"cannot write: {error}", where=str(partial.parent), fix="free some space"
            ) from None
        raise


def _write_processor(p: Params, config: Any, folder: Path) -> None:
    """Write preprocessor configs for servers: the base model's, or from its config's numbers.

    The tiny base has none, because the pipeline prepares frames itself (`backbones`).
    """
    from transformers.utils import cached_file

    location = model_path.base_location(p.model.base_model)
    kind = backbone(p.model.backbone, config)
    for name in PROCESSOR_FILES:
        cached = cached_file(
            location,
            name,
            revision=private.commit_of(config),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if cached and os.path.exists(cached):
            values = files.read_json(cached)
            if (fixed := kind.as_trained(values)) != values:
                files.write_json(folder / name, fixed)
            else:
                shutil.copyfile(cached, folder / name)
    for name, values in kind.processor_files(config).items():
        if not (folder / name).exists():
            files.write_json(folder / name, values)
