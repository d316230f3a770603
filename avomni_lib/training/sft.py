"""TRL's SFTTrainer on our windows: batches from the loader, pixels made on the device.

Imports TRL, so it is imported only after the base model is loaded: Unsloth has to come first.
"""

from __future__ import annotations

import math
import time
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback  # noqa: F401
from trl import SFTConfig, SFTTrainer

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.backbones import Backbone
from avomni_lib.training.checkpoints import Checkpoints
from avomni_lib.training.loader import Loader


class WindowTrainer(SFTTrainer):
    """SFTTrainer that takes its batches from a `Loader` and leaves only whole checkpoints.

    Args:
        loader: Batches of the whole run in order; the trainer sees them as one epoch, so that a
            restart is nothing but a batch's number.
        kind: Makes the pixels.
        checkpoints: Where they go; `args.output_dir` is its `partial` folder.
    """

    def __init__(self, *, loader: Loader, kind: Backbone, checkpoints: Checkpoints, **arguments):
        super().__init__(**arguments)
        self.loader, self.kind, self.checkpoints = loader, kind, checkpoints
        self.num_trained = 0
        # SFTTrainer casts the adapter of a 4-bit model to bfloat16, whose 8 bits of mantissa
        # swallow small updates. It is less than a hundredth of the model: it stays float32.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                self.num_trained += parameter.numel()

    def get_train_dataloader(self) -> DataLoader:
        numbers = [[number] for number in range(len(self.loader))]
        return DataLoader(self.loader, batch_sampler=numbers, collate_fn=lambda made: made[0])

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        frames = inputs.pop("frames")
        inputs = super()._prepare_inputs(inputs)
        inputs |= self.kind.inputs(frames.to(self.args.device), self.model.dtype)
        self.loader.give_back(frames)
        return inputs

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Weights and two moments of float32 at most, and the tokenizer's files.
        files.need_room(self.checkpoints.folder, 12 * self.num_trained + 2**25, "a checkpoint")
        # Not SFTTrainer's, which only adds a model card for the hub.
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()  # each rank writes its own random state
        if self.checkpoints.writes:
            self.checkpoints.adopt(self.state.global_step)
        self.accelerator.wait_for_everyone()


class Meter(TrainerCallback):
    """Watches each step: a line of metrics, the bar, and an end where the loss is no number.

    Args:
        loader: Whose waiting is measured.
        checkpoints: Whose metrics are written.
        bar: Moved by one a step.
        every: Steps between lines.
        epochs_per_step: Passes over the windows that a step makes.
    """

    def __init__(
        self,
        loader: Loader,
        checkpoints: Checkpoints,
        bar: Bar,
        *,
        every: int,
        epochs_per_step: float,
    ):
        self.loader, self.checkpoints, self.bar = loader, checkpoints, bar
        self.every = every
        self.epochs_per_step = epochs_per_step
        self.seconds = self.waited = 0.0  # since the last line

    def on_train_begin(self, args, state, control, **_):
        self._mark()

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs:
            return  # the summary after the last step
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise not_a_number(name, logs[name], state.global_step, self.checkpoints)
        self.seconds += time.perf_counter() - self._since
        self.waited += self.loader.waited_s - self._waited
        self._mark()
        self.bar.update(1, note=f"loss {logs['loss']:.3f}")
        if self.checkpoints.writes and state.global_step % self.every == 0:
            self.checkpoints.metrics.add(
                {
                    "step": state.global_step,
                    "epoch": round(state.global_step * self.epochs_per_step, 4),
                    "loss": logs["loss"],
                    "token_accuracy": logs.get("mean_token_accuracy"),
                    "learning_rate": logs["learning_rate"],
                    "grad_norm": logs["grad_norm"],
                    "seconds": round(self.seconds, 4),
                    "data_wait_s": round(self.waited, 4),
                }
            )
            self.seconds = self.waited = 0.0

    def on_save(self, args, state, control, **_):
        self._mark()  # a checkpoint's seconds are not the next step's

    def _mark(self) -> None:
        self._since, self._waited = time.perf_counter(), self.loader.waited_s


def not_a_number(name: str, value: float, step: int, checkpoints: Checkpoints) -> AvomniError:
    """Why training stops: going on would only write broken weights over whole ones."""
    last = checkpoints.last()
    kept = f"{last.name} is whole" if last else "no checkpoint was made yet"
    return AvomniError(
        f"training went astray: {name} is {value} at step {step}; {kept}",
        where=str(checkpoints.folder),
        fix="lower training.learning_rate, or raise training.warmup_ratio",
    )


def arguments_of(
    p: Params, checkpoints: Checkpoints, choices: dict[str, Choice], steps: int
) -> SFTConfig:
    """TRL's arguments for these parameters and choices."""
    training, on_cpu = p.training, choices["device"].value == "cpu"
    schedule = training.lr_scheduler
    return SFTConfig(
        output_dir=str(checkpoints.partial),
        seed=p.run.seed,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=math.ceil(training.warmup_ratio * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=choices["optimizer"].value,
        gradient_checkpointing=training.gradient_checkpointing,
        # Left out, TRL would take bfloat16 on a CPU too.
        bf16=choices["dtype"].value == "bfloat16",
        use_cpu=on_cpu,
        save_strategy="steps",
        save_steps=training.save_steps,
        # Every step is looked at, so that a loss that is no number stops the training at once;
        # the filter would hide it.
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # The prompt is thousands of tokens and the vocabulary 151,936: logits of all places would
        # take gigabytes. This one makes them where a label bears the loss, and only there.
        loss_type="chunked_nll",
        max_length=None,
    )


def named_rows(count: int) -> Dataset:
    """What SFTTrainer insists on, a `datasets.Dataset`; the loader knows the windows by number."""
    return Dataset.from_dict({"index": range(count)})
