"""The merged model: the base model's weights with a trained adapter folded in, in 16 bit.

The adapter was trained around the base model's 4-bit weights, turned back into numbers for each
product, so it is folded into these very numbers. The original 16-bit weights are others: NF4 moves
a weight by 9 % of their spread (rms, weights spread as a normal distribution), and the adapter
learned to answer on top of that. Added to the originals it would mend an error that is not there.

What merging changes is one rounding after the sum: by 0.17 % of the spread in bfloat16, by 0.02 %
in float16.
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
from avomni_lib.training.model import adapter, load, place, private

KIND = "merged"
DTYPES = {"bfloat16": 2, "float16": 2}  # bytes a number
SHARD_SIZE = "5GB"  # one file of 17 GB would be loaded, copied and fetched as one
# Tokenizer, config and template; the 8B's tokenizer is 11 MB.
SMALL_FILES_BYTES = 32 << 20
PROCESSOR_FILES = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    "chat_template.json",
)


def merged_dir(p: Params) -> Path:
    """Where the merged model of a run lies, unless another place is named."""
    return p.run_dir / KIND


def merge(
    p: Params,
    folder: Path | None = None,
    progress: type[Bar] = Bar,
    dtype: str = "bfloat16",
    figures: Mapping[str, Any] | None = None,
    score: Mapping[str, Any] | None = None,
) -> Path:
    """Write the run's base model and adapter as one model that plain transformers loads.

    Killed or out of disk, it leaves no folder that looks whole; the next call starts anew. Memory
    is that of the model in the training's dtype: an 8B takes 18 GB on an accelerator, 35 on a CPU.

    Args:
        folder: Where to; `merged_dir(p)` if None. A merged model that lies there is replaced.
        progress: One unit a step: load, fold in, write.
        dtype: "bfloat16", or "float16", which rounds eight times finer and ends at 65,504.
        figures: 05's, for the card.
        score: 06's, for the card.

    Returns:
        The folder.

    Raises:
        AvomniError: no trained adapter, a damaged one, or not of this base model; the folder holds
            something else; no room in memory or on the disk; a number that `dtype` cannot hold.
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
        # By transformers whoever trained it: Unsloth's patches have no place in plain weights.
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
    """How many numbers the base model has, in 16 bit; its config is read, its weights are not."""
    return sum(parameter.numel() for parameter in load.empty_model(p).parameters())


def _fold(base: Any, source: Path, p: Params, dtype: str) -> Any:
    """The base model out of 4 bit, with the adapter's product added, rounded to `dtype`."""
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
    logging.set_verbosity_error()  # it warns that numbers stay in the dtype that was asked for
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
    """Only what an export wrote is replaced: `--out` may name a folder full of something else."""
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
    """An empty folder to write in; what fails takes it away with what is in it.

    Raises:
        AvomniError: there is no room left on the disk.
    """
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors wraps the operating system's error into one of its own.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise AvomniError(
                f"cannot write: {error}", where=str(partial.parent), fix="free some space"
            ) from None
        raise


def _write_processor(p: Params, config: Any, folder: Path) -> None:
    """What servers and converters prepare pictures by: the base model's, or its config's numbers.

    The tiny base brings none, because the pipeline prepares frames itself (`backbones`).
    """
    from transformers.utils import cached_file

    location = place.base_location(p.model.base_model)
    kind = backbone(p.model.backbone, config)
    for name in PROCESSOR_FILES:
        found = cached_file(
            location,
            name,
            revision=private.commit_of(config),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found and os.path.exists(found):
            values = files.read_json(found)
            if (fixed := kind.as_trained(values)) != values:
                files.write_json(folder / name, fixed)
            else:
                shutil.copyfile(found, folder / name)
    for name, values in kind.processor_files(config).items():
        if not (folder / name).exists():
            files.write_json(folder / name, values)
