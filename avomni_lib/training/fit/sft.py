"""TRL's SFTTrainer with batches from the loader and pixels computed on the device.

Imports TRL, so import it only after the base model is loaded, as Unsloth has to come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset  # noqa: F401
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback  # noqa: F401
from trl import SFTConfig, SFTTrainer

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.feed.loader import Loader
from avomni_lib.training.fit import heldout
from avomni_lib.training.fit.checkpoints import Checkpoints
from avomni_lib.training.fit.heldout import HeldOut
from avomni_lib.training.model import private
from avomni_lib.training.prompt.conversation import IGNORED, Conversation

# Private names of TRL's SFTTrainer that this module uses.
PRIVATE_NAMES = ("_metrics",)


class WindowTrainer(private.TrainerHooks, SFTTrainer):
    """An SFTTrainer with batches from a `Loader` and atomic checkpoints.

    The loss of an optimizer step is the mean over all answer tokens of its windows, however they
    are divided into batches and processes. transformers would average the batches' means, because
    its Qwen3-VL declares that it does not accept the number of tokens.

    Args:
        loader: Batches of the whole run in order; for the trainer they are one epoch, so that
            resuming only needs the number of a batch.
        conversation: The conversation of the batches; its backbone computes the pixels.
        checkpoints: Destination of checkpoints; `args.output_dir` is its `partial` folder.
        held_out: Windows that are answered at each checkpoint.
        patience: Number of checkpoints without improvement after which the training stops.
    """

    def __init__(
        self,
        *,
        loader: Loader,
        conversation: Conversation,
        checkpoints: Checkpoints,
        held_out: HeldOut | None = None,
        patience: int | None = None,
        **arguments,
    ):
        super().__init__(**arguments)
        self.loader, self.conversation, self.checkpoints = loader, conversation, checkpoints
        self.held_out, self.patience = held_out, patience
        self.history = checkpoints.history
        self.num_trained = self.num_tokens = 0
        self._losses: list[torch.Tensor] = []  # of the batches since the last optimizer step
        # Only this class weights the batches: without a count, every loss (TRL's chunked one,
        # transformers' and Unsloth's) is the mean over the batch's answer tokens.
        self.model_accepts_loss_kwargs = False
        self._weights: list[float] = []  # of this process's remaining batches of the step
        self._answer_tokens = np.ones(1)  # of the step's batches, over all processes
        # SFTTrainer casts the adapter of a 4-bit model to bfloat16, whose 8-bit mantissa loses
        # small updates. The adapter is less than 1 % of the model, so it is kept in float32.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                self.num_trained += parameter.numel()

    def get_train_dataloader(self) -> DataLoader:
        numbers = [[number] for number in range(len(self.loader))]
        return DataLoader(self.loader, batch_sampler=numbers, collate_fn=lambda made: made[0])

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list, None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # The label of a row's first token is never predicted.
        local = torch.tensor([int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches])
        total = self.accelerator.reduce(local.to(device), "sum").cpu()
        # transformers divides by the number of batches, and DDP by that of the processes.
        shares = local.double() / total.sum() * len(batches) * self.accelerator.num_processes
        self._weights, self._answer_tokens = shares.tolist(), total.numpy()
        return batches, None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if torch.is_grad_enabled():  # not in `_windows_without_finite_loss`
            loss = loss * self._weights.pop(0)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL would average the batches' accuracies without weights.
        accuracies = self._metrics["train"].get("mean_token_accuracy", [])
        if len(accuracies) == len(self._answer_tokens):
            accuracies[:] = [float(np.average(accuracies, weights=self._answer_tokens))]
        super().log(logs, start_time)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            # All together and before the optimizer's step: this waits for the device only once per
            # step, and `_windows_without_finite_loss` needs the weights from before the step.
            losses, self._losses = torch.stack(self._losses).tolist(), []
            for number, value in enumerate(losses):
                if not math.isfinite(value):
                    step = self.state.global_step
                    windows = self._windows_without_finite_loss(step * len(losses) + number)
                    raise self.not_a_number("loss", value, step + 1, windows)
        return loss

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        frames = inputs.pop("frames")
        self.num_tokens += inputs["input_ids"].numel()
        if tuple(frames.shape[1:]) != self.conversation.frame_shape:
            raise AvomniError(
                f"a batch's windows are {tuple(frames.shape[1:])}, the prompt expects "
                f"{self.conversation.frame_shape}",
                fix="run 03_etl again",
            )
        inputs = self.on_device(inputs)
        # The copy is asynchronous. The loader's thread waits for it before it reuses the buffer.
        inputs |= self.conversation.inputs(
            frames.to(self.args.device, non_blocking=True), self.model.dtype
        )
        copied = None
        if self.args.device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # wait without occupying a core
            copied.record()
        self.loader.give_back(frames, copied)
        return inputs

    def save(self, by_transformers: Callable[[], None]) -> None:
        # At most weights and two moments in float32, and the tokenizer's files.
        files.need_room(self.checkpoints.folder, 12 * self.num_trained + 2**25, "a checkpoint")
        by_transformers()
        self._ask_held_out()
        self.accelerator.wait_for_everyone()  # every rank writes its random state
        if self.checkpoints.writes:
            self.checkpoints.adopt(self.state.global_step, self.history)
        self.accelerator.wait_for_everyone()

    def begin(self, max_steps: int) -> None:
        # A checkpoint's state has the intervals of the process that wrote it.
        self.state.compute_steps(self.args, max_steps)

    def load_optimizer(self, checkpoint: str | None) -> None:
        # With several processes transformers maps to the device by name, and torch.load does not
        # support `cpu:1`.
        parts = {"optimizer.pt": self.optimizer, "scheduler.pt": self.lr_scheduler}
        for name, part in parts.items() if checkpoint else ():
            path = Path(checkpoint) / name
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _ask_held_out(self) -> None:
        step = self.state.global_step
        # No figure for a checkpoint of a stop, as an uninterrupted run would have none there.
        regular = step % self.args.save_steps == 0 or step == self.args.max_steps
        if self.held_out is None or not regular:
            return
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        errors = gather_object(self.held_out.errors(self.model, rank, num_ranks))
        # fsum is exact, so the result does not depend on the number of ranks.
        figure = math.fsum(errors) / len(errors)
        self.history = [
            *self.history,
            {"step": step, self.held_out.conversation.target.figure: figure},
        ]
        if heldout.exhausted(self.history, self.patience):
            self.control.should_training_stop = True

    def _windows_without_finite_loss(self, batch: int) -> list[int]:
        """Windows of a batch whose individual loss is not finite; if none, the whole batch."""
        indices = self.loader.batches[batch]
        return [index for index in indices if not math.isfinite(self._loss_of(index))] or [*indices]

    def _loss_of(self, index: int) -> float:
        frames = np.empty((1, *self.loader.windows.frame_shape), np.uint8)
        self.loader.windows.read_into(index, frames[0])
        pixels = torch.from_numpy(frames).to(self.args.device)
        inputs = self.on_device(self.loader.tokens([index]))
        inputs |= self.conversation.inputs(pixels, self.model.dtype)
        with torch.no_grad():
            return float(self.compute_loss(self.model, inputs))

    def not_a_number(
        self, name: str, value: float, step: int, windows: Sequence[int]
    ) -> AvomniError:
        """The error for a non-finite value, which stops the training before weights are saved."""
        last = self.checkpoints.last()
        kept = f"{last.name} is whole" if last else "no checkpoint was made yet"
        shown = (self.loader.windows[index] for index in windows)
        samples = ", ".join(f"window {w.number} of clip {w.clip_id}" for w in shown)
        return AvomniError(
            f"training diverged: {name} is {value} at step {step}, at {samples}; {kept}",
            where=str(self.checkpoints.folder),
            fix="look at the window in 04_tiles; lower training.learning_rate, or raise "
            "training.warmup_ratio",
        )


def arguments_of(
    p: Params,
    checkpoints: Checkpoints,
    choices: dict[str, Choice],
    steps: int,
    accumulation: int,
) -> SFTConfig:
    """TRL's arguments for these parameters and choices.

    Args:
        steps: Optimizer steps of the whole run.
        accumulation: Batches per process and optimizer step.
    """
    training, on_cpu = p.training, choices["device"].value == "cpu"
    schedule = training.lr_scheduler
    arguments = SFTConfig(
        output_dir=str(checkpoints.partial),
        seed=p.run.seed,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=math.ceil(training.warmup_ratio * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=choices["optimizer"].value,
        gradient_checkpointing=training.gradient_checkpointing,
        # TRL's default is bfloat16, even on a CPU.
        bf16=choices["dtype"].value == "bfloat16",
        use_cpu=on_cpu,
        save_strategy="steps",
        save_steps=training.save_steps,
        # Log every step without the filter, so that a non-finite gradient stops the training.
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",  # the meter reports, with further values
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # With thousands of tokens and a vocabulary of 151,936, logits of all tokens would take
        # gigabytes. This loss computes them only for tokens that bear the loss.
        loss_type="chunked_nll",
        max_length=None,
    )
    private.use_one_card(arguments)
    return arguments
