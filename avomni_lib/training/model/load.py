"""Loads the base model in 4 bit and its adapter, with Unsloth or with transformers and PEFT.

Both result in the same model: LoRA on the q, k, v and o projections of the language model's
attention, everything else frozen.
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
from avomni_lib.training.model.model_path import base_location, base_place

log = logging.getLogger(__name__)

# Files of a base model that its answers depend on: weights, config, tokenizer, template.
BASE_FILES = (
    *("*.safetensors", "config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "chat_template*"),
)
LANGUAGE_MODEL = "language_model"  # part of the full name of each of its modules


class Base(NamedTuple):
    """A loaded base model.

    Attributes:
        model: `PreTrainedModel` on its device.
        tokenizer: Its tokenizer.
        choices: device, dtype, attention, backend, quantisation and the backbone's choices, as
            (value, reason).
    """

    model: Any
    tokenizer: Any
    choices: dict[str, Choice]


class Trainable:
    """A base model with a LoRA adapter, loaded once for several trainings.

    Attributes:
        base: The base model, which contains the adapter's layers, and its tokenizer.
        model: The `PeftModel`.
        ignored: Environment variables that were removed before loading.
    """

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self.base: Base | None = None

    def fresh(self, p: Params) -> tuple[Base, Any]:
        """The base model and the `PeftModel` in their initial state.

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
        """Undo the wrappers that TRL and Accelerate add to `forward` with every trainer."""
        for module, forward in self._forwards:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def base_digest(location: str, config: Any) -> str:
    """Identifies a base model: name and commit on the hub, or a sha256 of the folder's files.

    A folder's name is not part of it, as the same files may be elsewhere on another machine.
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
        AvomniError: no such base model, it is not of the backbone's family, or Unsloth is requested
            and not usable.
    """
    environment.clean()
    location, kind, choices = _chosen(p)
    load = _by_unsloth if choices["backend"].value == "unsloth" else _by_transformers
    model, tokenizer = load(p, location, kind, choices)
    kind.prepare(model, fuse=choices["backend"].value != "unsloth")
    # The config of a composite model lacks them; the trainer would set them with a warning.
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    # A saved adapter contains this name, so it must not be a path of this machine.
    model.name_or_path = model.config.name_or_path = base_place(p.model.base_model)
    return Base(model, tokenizer, choices)


def choices_of(p: Params) -> dict[str, Choice]:
    """The choices of `load_base`; no weights are loaded.

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
    """Choose device, dtype, attention and backend; imports Unsloth if it is the backend.

    Call this before importing transformers, TRL and PEFT, which Unsloth patches on import.

    Raises:
        AvomniError: Unsloth is requested and not usable.
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
    """Unsloth if it runs here and supports the family, else transformers."""
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
    """The base model on the meta device: only its config is read, not its weights.

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
    """Add a new LoRA adapter on the modules that the backbone names; everything else is frozen.

    The initial weights are a function of `run.seed` alone.

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

        # Its switches below select q, k, v and o; other modules are given by a pattern.
        named = p.model.lora_targets is not None or kind.lora_targets != Backbone.lora_targets
        targets = {"target_modules": pattern} if named else {}
        return FastVisionModel.get_peft_model(
            model,
            finetune_vision_layers=False,
            finetune_language_layers=True,
            finetune_attention_modules=True,
            finetune_mlp_modules=False,
            random_state=p.run.seed,
            **shared,
            **targets,
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
    """A pattern for the full names of the modules that LoRA adapts.

    Raises:
        AvomniError: the language model lacks such a linear layer; names those that it has.
    """
    from torch.nn import Linear  # base class of bitsandbytes' 4-bit layers

    named = p.model.lora_targets or kind.lora_targets
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear) and LANGUAGE_MODEL in name.split(".")
    ]
    unknown = [
        target for target in named if not any(f".{name}".endswith(f".{target}") for name in layers)
    ]
    if unknown:
        ends = dict.fromkeys(name.rpartition(".")[2] for name in layers)
        raise AvomniError(
            "the adapter finds no place in the base model: its language model has no linear layer "
            f"called {', '.join(unknown)}",
            where="model.base_model" if p.model.lora_targets is None else "model.lora_targets",
            fix=f"there are {', '.join(ends) or 'none'}",
        )
    # This text is saved with adapters: keep it the same for the backbone's targets.
    return rf".*{LANGUAGE_MODEL}.*\.({'|'.join(t.replace('.', '[.]') for t in named)})"


def load_adapter(
    model: Any, folder: Path, p: Params, header: Mapping[str, Any] | None = None
) -> Any:
    """The base model with the adapter of `folder`, for inference.

    Args:
        header: Header of the cache whose windows are answered; None without a cache.

    Raises:
        AvomniError: there is no adapter, its files are damaged, or it was trained with other
            inputs (names every difference).
    """
    from peft import PeftModel

    check_adapter(folder, p, header)
    check_whole(folder)
    model = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    return model.eval()


def add_second(
    tuned: Any, folder: Path, name: str, p: Params, header: Mapping[str, Any] | None = None
) -> None:
    """Load a second adapter of the same shape, which `tuned.set_adapter(name)` activates.

    Args:
        p: Parameters of that adapter's training.
        header: See `load_adapter`.

    Raises:
        AvomniError: as `load_adapter`.
    """
    check_adapter(folder, p, header)
    check_whole(folder)
    tuned.load_adapter(str(folder), adapter_name=name, is_trainable=False)


def check_adapter(folder: Path, p: Params, header: Mapping[str, Any] | None = None) -> None:
    """Compare an adapter's record with parameters, base model and cache; no weights are loaded.

    Args:
        header: See `load_adapter`.

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
    """Load the adapter's weights of a checkpoint into a model with an adapter, in place."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(tuned, load_peft_weights(str(checkpoint), device="cpu"))


def trainable_parameters(model: Any) -> int:
    return sum(param.numel() for param in model.parameters() if param.requires_grad)


def _quantisation(p: Params, config: Any) -> Choice:
    stored = getattr(config, "quantization_config", None)
    if stored:
        method = stored.get("quant_method", "?") if isinstance(stored, dict) else "stored"
        return Choice("stored", f"the checkpoint is quantised already ({method})")
    return in_4bit(p)


def read_config(name: str, location: str, allow_plain_http: bool = False) -> Any:
    """Read the base model's config, before weights and tokenizer are downloaded.

    Raises:
        AvomniError: there is none, it requires remote code, or the hub's token would be sent
            unencrypted.
    """
    from transformers import AutoConfig

    if not Path(location).is_dir():
        # The hub client is slow to import and not needed for plans.
        from avomni_lib.dataset.download import hub

        hub.need_private_endpoint(allow_plain_http)
    with _in_words(name):
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        _refuse_code(name, getattr(config, "auto_map", None))
        return config


def read_tokenizer(name: str, location: str) -> Any:
    """The base model's tokenizer.

    Raises:
        AvomniError: there is none, or it requires remote code.
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
    """Convert the libraries' errors about a base model to `AvomniError`."""
    try:
        yield
    except AvomniError:
        raise
    except Exception as error:  # damaged or unsupported checkpoints fail in many ways
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
    # Left out unless used: None would override the config of a quantised checkpoint.
    quantisation = {}
    if choices["quantisation"].value == "nf4":
        quantisation["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # Despite its name this applies to 4 bit too.
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
        # On CPUs with AVX-512 bf16, bitsandbytes repacks 4-bit weights at the first inference, for
        # a kernel without gradients: a training with evaluations in between would diverge.
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
    """Silence loading bars and an irrelevant warning, which would clutter executed notebooks."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # It recommends a bf16 kernel from the hub, but on CPUs we compute in float32.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _import_unsloth_first() -> None:
    """Import Unsloth, with a warning if libraries that it patches are already imported."""
    early = [name for name in ("trl", "transformers", "peft") if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        log.warning("unsloth is imported after %s: some of its patches will miss", early)
    import unsloth  # noqa: F401
