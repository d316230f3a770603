"""All uses of private names of transformers.

A test checks that all `PRIVATE_NAMES` exist in the installed release. This module does not import
transformers at its top level, because Unsloth, if it is used, has to be imported first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Class or module that defines them -> names.
PRIVATE_NAMES = {
    "transformers.Trainer": (
        "_prepare_inputs",
        "_save_checkpoint",
        "_init_training_state",
        "_load_optimizer_and_scheduler",
    ),
    "transformers.TrainingArguments": ("_n_gpu",),
    "transformers.PreTrainedConfig": ("_attn_implementation", "_commit_hash"),
    # Attribute of a loaded model.
    "transformers.core_model_loading": ("_weight_conversions",),
}


class TrainerHooks:
    """Maps private methods of transformers' Trainer to public hooks.

    A mixin to be placed before the Trainer's class. The derived class defines `prepare` (a batch of
    the loader to the model's inputs), `save` (a checkpoint), `begin` (called after the trainer's
    state is created or read from a checkpoint) and `load_optimizer` (its state and the scheduler's,
    if there is a checkpoint).
    """

    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    save: Callable[[Callable[[], None]], None]
    begin: Callable[[int], None]
    load_optimizer: Callable[[str | None], None]

    def on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a batch on the training's device."""
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.prepare(inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from transformers import Trainer

        # Bypasses SFTTrainer's method, which only adds a model card for the hub.
        self.save(lambda: Trainer._save_checkpoint(self, model, trial))

    def _init_training_state(self, max_steps: int, *arguments: Any) -> Any:
        state = super()._init_training_state(max_steps, *arguments)  # type: ignore[misc]
        self.begin(max_steps)
        return state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer(checkpoint)


def use_one_card(arguments: Any) -> None:
    """Make a process use one card even if several are visible.

    transformers would wrap the model in DataParallel, which splits position_ids (axes, B, L) along
    the wrong axis.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def commit_of(config: Any) -> str | None:
    """The hub commit from which a config was read; None for a config in a folder."""
    return getattr(config, "_commit_hash", None)


def replace_attention(config: Any, old: str, new: str) -> None:
    """Set the attention implementation to `new` if a config has `old`."""
    if config._attn_implementation == old:
        config._attn_implementation = new


def forget_quantised_loading(model: Any) -> None:
    """Remove conversions that saving would have to reverse; that of 4-bit weights cannot be."""
    if getattr(model, "_weight_conversions", None):
        model._weight_conversions = [
            step
            for step in model._weight_conversions
            if not any(hasattr(part, "hf_quantizer") for part in getattr(step, "operations", ()))
        ]
