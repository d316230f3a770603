"""The base model in 4 bit and its adapter, by Unsloth or by transformers and PEFT.

Both give the same: a model whose language part bears LoRA on its attention's q, k, v and o,
everything else frozen.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, backbone, family, in_4bit
from avomni_lib.training.fit import environment
from avomni_lib.training.model import private
from avomni_lib.training.model.adapter import check_whole, read_record
from avomni_lib.training.model.model_input import refuse_other, what_the_model_sees
from avomni_lib.training.model.place import base_location, base_place

log = logging.getLogger(__name__)

# Of a base model in a folder, what its answers follow from: weights, config, tokenizer, template.
BASE_FILES = (
    *("*.safetensors", "config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "chat_template*"),
)


class Base(NamedTuple):
    """A base model ready to answer or to be given an adapter.

    Attributes:
        model: `PreTrainedModel` on its device.
        tokenizer: Its tokenizer.
        choices: device, dtype, attention, backend, quantisation and what else the backbone chooses,
            each a (value, reason).
    """

    model: Any
    tokenizer: Any
    choices: dict[str, Choice]


class Trainable:
    """A base model with a LoRA adapter, loaded once for one training after another.

    Attributes:
        base: The base model and its tokenizer; the adapter's layers are in it.
        model: The `PeftModel`.
        ignored: Environment variables that were removed before anything was loaded.
    """

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self.base: Base | None = None

    def fresh(self, p: Params) -> tuple[Base, Any]:
        """The base model and the `PeftModel`, as they are when just loaded.

        Raises:
            AvomniError: see `load_base` and `add_adapter`.
        """
        if self.base is None:
            self.base = load_base(p)
            kind = backbone(p.model.backbone, self.base.model.config)
            self.model = add_adapter(self.base.model, p, kind, self.base.choices["backend"].value)
            self._initial = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
            modules = (self.model, self.model.get_base_model())
            self._forwards = [(module, vars(module).get("forward")) for module in modules]
            return self.base, self.model
        for name, parameter in self.model.named_parameters():
            if name in self._initial:
                parameter.data = self._initial[name].to(parameter.device, copy=True)
                parameter.grad = None
        self.unwrap()
        return self.base, self.model

    def unwrap(self) -> None:
        """Undo what TRL and Accelerate lay over `forward`, once more with each trainer."""
        for module, forward in self._forwards:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def base_digest(location: str, config: Any) -> str:
    """What tells base models apart: name and commit of the hub's, or a sha256 of a folder's files.

    A folder's name is not in it: the same files may lie elsewhere on another machine.
    """
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{private.commit_of(config)}"
    paths = sorted(path for form in BASE_FILES for path in folder.glob(form) if path.is_file())
    return files.hash_json({path.name: files.sha256_once(path) for path in paths})


def load_base(p: Params) -> Base:
    """The base model on this machine's device, in 4 bit unless `model.load_in_4bit` is off.

    A checkpoint that is already quantised is loaded as it is.

    Raises:
        AvomniError: no such base model, it is not the backbone's, or Unsloth is asked for in vain.
    """
    environment.clean()
    location, kind, choices = _chosen(p)
    load = _by_unsloth if choices["backend"].value == "unsloth" else _by_transformers
    model, tokenizer = load(p, location, kind, choices)
    kind.prepare(model, fuse=choices["backend"].value != "unsloth")
    # The config of a composite model has none of its own; the trainer would set them and warn.
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    # What is saved of an adapter names it; a path of this machine would mean nothing on another.
    model.name_or_path = model.config.name_or_path = base_place(p.model.base_model)
    return Base(model, tokenizer, choices)


def choices_of(p: Params) -> dict[str, Choice]:
    """What `load_base` chooses; no weights are loaded.

    Raises:
        AvomniError: as `load_base`.
    """
    return _chosen(p)[2]


def _chosen(p: Params) -> tuple[str, Backbone, dict[str, Choice]]:
    choices = choose(p)
    quieten()
    location = base_location(p.model.base_model)
    config = read_config(p.model.base_model, location, p.dataset.allow_plain_http)
    kind = backbone(p.model.backbone, config)
    return location, kind, choices | {"quantisation": _quantisation(p, config)} | kind.choices


def choose(p: Params) -> dict[str, Choice]:
    """Device, dtype, attention and backend; Unsloth is imported where it is the backend.

    Unsloth patches transformers, TRL and PEFT as it is imported, so this comes before them.

    Raises:
        AvomniError: Unsloth is asked for in vain.
    """
    device = hardware.device()
    backend = _backend(p, device.value)
    choices = {
        "device": device,
        "dtype": hardware.dtype(device.value),
        "attention": hardware.attention(device.value),
        "backend": backend,
    }
    if choices["backend"].value == "unsloth":
        _import_unsloth_first()
    return choices


def _backend(p: Params, device: str) -> Choice:
    """Unsloth where it runs and knows the family, else transformers."""
    kind = family(p.model.backbone)
    if kind.in_unsloth or p.model.backend == "transformers":
        return hardware.backend(p.model.backend, device)
    if p.model.backend == "unsloth":
        raise AvomniError(
            f"Unsloth has no path for the backbone {kind.name}",
            where="model.backend",
            fix="set model.backend: auto",
        )
    return Choice("transformers", f"Unsloth has no path for the backbone {kind.name}")


def empty_model(p: Params) -> Any:
    """The base model without memory for its weights: its config is read, they are not.

    Raises:
        AvomniError: see `read_config`.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    location = base_location(p.model.base_model)
    config = read_config(p.model.base_model, location, p.dataset.allow_plain_http)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def add_adapter(model: Any, p: Params, kind: Backbone, backend: str = "transformers") -> Any:
    """The model with a fresh LoRA adapter on the modules that the backbone names; all else frozen.

    A function of `run.seed`: the adapter's start does not depend on what ran before.

    Raises:
        AvomniError: the model has no module that the backbone or `model.lora_targets` names.
    """
    pattern = _lora_pattern(model, p, kind)
    shared = {
        "r": p.model.lora_rank,
        "lora_alpha": p.model.lora_alpha,
        "lora_dropout": p.model.lora_dropout,
        "bias": "none",
    }
    if backend == "unsloth":
        from unsloth import FastVisionModel

        # By its own switches it finds q, k, v and o alone.
        named = p.model.lora_targets is not None or kind.lora_targets != Backbone.lora_targets
        own = {"target_modules": pattern} if named else {}
        return FastVisionModel.get_peft_model(
            model,
            finetune_vision_layers=False,
            finetune_language_layers=True,
            finetune_attention_modules=True,
            finetune_mlp_modules=False,
            random_state=p.run.seed,
            **shared,
            **own,
        )
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(p.run.seed)
    config = LoraConfig(target_modules=pattern, task_type="CAUSAL_LM", **shared)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise AvomniError(
            f"the adapter finds no place in the base model: {error}", where="model.base_model"
        ) from None


def _lora_pattern(model: Any, p: Params, kind: Backbone) -> str:
    """A pattern of the full names of the modules that LoRA adapts.

    Raises:
        AvomniError: the language model has no linear layer whose name ends so; all that it has.
    """
    from torch.nn import Linear  # bitsandbytes' layers of 4 bit are such

    named = p.model.lora_targets or kind.lora_targets
    there = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear) and kind.language_model in name.split(".")
    ]
    unknown = [own for own in named if not any(f".{each}".endswith(f".{own}") for each in there)]
    if unknown:
        ends = dict.fromkeys(name.rpartition(".")[2] for name in there)
        raise AvomniError(
            "the adapter finds no place in the base model: its language model has no linear layer "
            f"called {', '.join(unknown)}",
            where="model.base_model" if p.model.lora_targets is None else "model.lora_targets",
            fix=f"there are {', '.join(ends) or 'none'}",
        )
    # For the backbone's own the very text that adapters have always been saved with.
    return rf".*{kind.language_model}.*\.({'|'.join(own.replace('.', '[.]') for own in named)})"


def load_adapter(
    model: Any, folder: Path, p: Params, header: Mapping[str, Any] | None = None
) -> Any:
    """The base model with the adapter of `folder`, to answer with.

    Args:
        header: Of the cache that it is asked about; None where no cache is read.

    Raises:
        AvomniError: no adapter there, its files are damaged, or it was trained for something else:
            every difference.
    """
    from peft import PeftModel

    check_adapter(folder, p, header)
    check_whole(folder)
    model = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    return model.eval()


def add_second(
    tuned: Any, folder: Path, name: str, p: Params, header: Mapping[str, Any] | None = None
) -> None:
    """Lay another adapter of the same shape beside the first; `tuned.set_adapter(name)` takes it.

    Args:
        p: Of that adapter's own training.
        header: As for `load_adapter`.

    Raises:
        AvomniError: as `load_adapter`.
    """
    check_adapter(folder, p, header)
    check_whole(folder)
    tuned.load_adapter(str(folder), adapter_name=name, is_trainable=False)


def check_adapter(folder: Path, p: Params, header: Mapping[str, Any] | None = None) -> None:
    """Hold an adapter's record against parameters, base model and cache; no weights are loaded.

    Args:
        header: As for `load_adapter`.

    Raises:
        AvomniError: as `load_adapter`.
    """
    record = read_record(folder)
    location = base_location(p.model.base_model)
    config = read_config(p.model.base_model, location, p.dataset.allow_plain_http)
    now = what_the_model_sees(
        p,
        backbone(p.model.backbone, config),
        base_digest(location, config),
        _quantisation(p, config).value,
        header or {},
    )
    refuse_other(record.get("sees"), now, str(folder))


def load_weights(tuned: Any, checkpoint: Path) -> None:
    """Give a model with an adapter the adapter's weights of a checkpoint, in place."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(tuned, load_peft_weights(str(checkpoint), device="cpu"))


def trainable_parameters(model: Any) -> int:
    """How many numbers the optimizer moves."""
    return sum(param.numel() for param in model.parameters() if param.requires_grad)


def _quantisation(p: Params, config: Any) -> Choice:
    stored = getattr(config, "quantization_config", None)
    if stored:
        method = stored.get("quant_method", "?") if isinstance(stored, dict) else "stored"
        return Choice("stored", f"the checkpoint is quantised already ({method})")
    return in_4bit(p)


def read_config(name: str, location: str, allow_plain_http: bool = False) -> Any:
    """The base model's config; read first, also before weights and tokenizer are fetched.

    Raises:
        AvomniError: there is none at that place, it asks for code of its own, or the token would go
            to it unencrypted.
    """
    from transformers import AutoConfig

    if not Path(location).is_dir():
        # Its client takes a while to import, and plans need none.
        from avomni_lib.dataset.download import hub

        hub.need_private_endpoint(allow_plain_http)
    with _in_words(name):
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        _refuse_code(name, getattr(config, "auto_map", None))
        return config


def read_tokenizer(name: str, location: str) -> Any:
    """The base model's tokenizer.

    Raises:
        AvomniError: there is none at that place, or it asks for code of its own.
    """
    from transformers import AutoTokenizer

    with _in_words(name):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        _refuse_code(name, tokenizer.init_kwargs.get("auto_map"))
        return tokenizer


def _refuse_code(name: str, asks: Any) -> None:
    if asks:
        raise AvomniError(
            f"base model {name!r} asks to run code that comes with it, which is never done",
            where="model.base_model",
            fix="name a checkpoint of a model that transformers has itself (of InternVL and LLaVA "
            "the repositories whose names end in -hf)",
        ) from None


@contextlib.contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What the libraries raise of a base model, as one error."""
    try:
        yield
    except AvomniError:
        raise
    except Exception as error:  # a damaged or foreign checkpoint fails in many ways
        if type(error).__name__ == "OutOfMemoryError":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _refuse_code(name, "trust_remote_code" in str(error))
        raise AvomniError(
            f"base model {name!r} cannot be loaded: {reason}",
            where="model.base_model",
            fix="name a folder that holds the checkpoint or a hub name (and be online, with a "
            "token where it is gated), or `tiny` for the package's own",
        ) from error


def _by_transformers(
    p: Params, location: str, kind: Backbone, choices: dict[str, Choice]
) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    dtype = getattr(torch, choices["dtype"].value)
    # Not as None: that would take away what a quantised checkpoint says of itself.
    quantisation = {}
    if choices["quantisation"].value == "nf4":
        quantisation["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # The name is historical; it holds for 4 bit too.
            llm_int8_skip_modules=list(kind.skip_modules),
        )
    with _in_words(p.model.base_model):
        model = AutoModelForImageTextToText.from_pretrained(
            location,
            dtype=dtype,
            attn_implementation=choices["attention"].value,
            device_map={"": choices["device"].value},
            trust_remote_code=False,
            use_safetensors=True,
            **quantisation,
        )
    for module in model.modules():
        # On CPUs with AVX-512 bf16 bitsandbytes lays 4-bit weights out anew at the first answer,
        # for a kernel without gradients: a training that asks its model midway would diverge.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, read_tokenizer(p.model.base_model, location)


def _by_unsloth(
    p: Params, location: str, kind: Backbone, choices: dict[str, Choice]
) -> tuple[Any, Any]:
    import torch
    from unsloth import FastVisionModel

    with _in_words(p.model.base_model):
        model, processor = FastVisionModel.from_pretrained(
            location,
            max_seq_length=p.model.max_seq_length,
            dtype=getattr(torch, choices["dtype"].value),
            load_in_4bit=choices["quantisation"].value != "none",
            use_gradient_checkpointing="unsloth" if p.training.gradient_checkpointing else False,
            device_map={"": choices["device"].value},
            trust_remote_code=False,
        )
    return model, getattr(processor, "tokenizer", processor)


def quieten() -> None:
    """Loading bars and an advice that is none: they would fill the executed notebook."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # On CPUs with AVX-512 bf16 it advises a kernel from the hub; our arithmetic is float32 there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _import_unsloth_first() -> None:
    """Import Unsloth, and say so where it comes too late to patch what is loaded already."""
    early = [name for name in ("trl", "transformers", "peft") if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        log.warning("unsloth is imported after %s: some of its patches will miss", early)
    import unsloth  # noqa: F401
