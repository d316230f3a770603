"""Private names of transformers that are used: all of them stand in this module.

Where a release moves one, the test that goes through `PRIVATE_NAMES` fails by that name. Imports
nothing of transformers: Unsloth, where it is the backend, has to be imported first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# By the class or the module that gives them to its objects.
PRIVATE_NAMES = {
    "transformers.Trainer": (
        "_prepare_inputs",
        "_save_checkpoint",
        "_init_training_state",
        "_load_optimizer_and_scheduler",
    ),
    "transformers.TrainingArguments": ("_n_gpu",),
    "transformers.PreTrainedConfig": ("_attn_implementation", "_commit_hash"),
    # Of a model that was loaded.
    "transformers.core_model_loading": ("_weight_conversions",),
}


class TrainerHooks:
    """What transformers' Trainer calls by private names, by names of our own.

    A base that stands before the Trainer's class; whoever derives from both defines `prepare`,
    `save`, `begin` and `load_optimizer`.
    """

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch of the loader, as the model takes it."""
        raise NotImplementedError

    def save(self, by_transformers: Callable[[], None]) -> None:
        """Write a checkpoint."""
        raise NotImplementedError

    def begin(self, max_steps: int) -> None:
        """Called when the state is made, and read from the checkpoint where there is one."""
        raise NotImplementedError

    def load_optimizer(self, checkpoint: str | None) -> None:
        """Read the states of the optimizer and of the schedule, where there is a checkpoint."""
        raise NotImplementedError

    def on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a batch on the training's device."""
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.prepare(inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from transformers import Trainer

        # Not SFTTrainer's, which only adds a model card for the hub.
        self.save(lambda: Trainer._save_checkpoint(self, model, trial))

    def _init_training_state(self, max_steps: int, *arguments: Any) -> Any:
        begun = super()._init_training_state(max_steps, *arguments)  # type: ignore[misc]
        self.begin(max_steps)
        return begun

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer(checkpoint)


def use_one_card(arguments: Any) -> None:
    """One process drives one card, whatever others are visible.

    transformers would wrap the model in DataParallel, which splits position_ids (axes, B, L) along
    the wrong axis.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def commit_of(config: Any) -> str | None:
    """The hub's commit that a config was read from; None of one in a folder."""
    return getattr(config, "_commit_hash", None)


def replace_attention(config: Any, old: str, new: str) -> None:
    """Choose attention `new` where a config has chosen `old`."""
    if config._attn_implementation == old:
        config._attn_implementation = new


def forget_quantised_loading(model: Any) -> None:
    """Saving takes back each step of the loading; reading a stored 4-bit weight has no way back."""
    if getattr(model, "_weight_conversions", None):
        model._weight_conversions = [
            step
            for step in model._weight_conversions
            if not any(hasattr(part, "hf_quantizer") for part in getattr(step, "operations", ()))
        ]
