"""TRL's SFTTrainer on our windows: batches from the loader, pixels made on the device.

Imports TRL, so it is imported only after the base model is loaded: Unsloth has to come first.
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

# Of TRL's SFTTrainer; its other names in this module are public.
PRIVATE_NAMES = ("_metrics",)


class WindowTrainer(private.TrainerHooks, SFTTrainer):
    """SFTTrainer that takes its batches from a `Loader` and leaves only whole checkpoints.

    The loss of an optimizer step is the mean over all answer tokens of its windows, however they
    are shared among batches and processes. transformers would take the mean of the batches' means:
    its Qwen3-VL declares that it does not take the number of tokens.

    Args:
        loader: Batches of the whole run in order; the trainer sees them as one epoch, so that a
            restart is nothing but a batch's number.
        conversation: The conversation whose prompt the batches bear; its backbone makes the pixels.
        checkpoints: Where they go; `args.output_dir` is its `partial` folder.
        held_out: Windows that are answered at each checkpoint.
        patience: Checkpoints without a better held-out figure before it stops.
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
        self._losses: list[torch.Tensor] = []  # of the batches since the optimizer moved
        # Nobody but this class weighs the batches: without a count, every loss of a model (TRL's in
        # chunks, transformers' and Unsloth's own) is the mean over the batch's answer tokens.
        self.model_accepts_loss_kwargs = False
        self._weights: list[float] = []  # of this process's batches of the step that are to come
        self._answer_tokens = np.ones(1)  # of the step's batches, over all processes
        # SFTTrainer casts the adapter of a 4-bit model to bfloat16, whose 8 bits of mantissa
        # swallow small updates. It is less than a hundredth of the model: it stays float32.
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
        own = torch.tensor([int((each["labels"][:, 1:] != IGNORED).sum()) for each in batches])
        of_all = self.accelerator.reduce(own.to(device), "sum").cpu()
        # transformers divides by the number of batches, and DDP by that of the processes.
        shares = own.double() / of_all.sum() * len(batches) * self.accelerator.num_processes
        self._weights, self._answer_tokens = shares.tolist(), of_all.numpy()
        return batches, None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if torch.is_grad_enabled():  # not where a culprit is looked for
            loss = loss * self._weights.pop(0)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL would take the mean of the batches' accuracies.
        found = self._metrics["train"].get("mean_token_accuracy", [])
        if len(found) == len(self._answer_tokens):
            found[:] = [float(np.average(found, weights=self._answer_tokens))]
        super().log(logs, start_time)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            # All at once and before the optimizer moves: one wait for the device a step, and the
            # weights that the culprit is looked for with are still whole.
            losses, self._losses = torch.stack(self._losses).tolist(), []
            for number, value in enumerate(losses):
                if not math.isfinite(value):
                    step = self.state.global_step
                    culprits = self._culprits(step * len(losses) + number)
                    raise self.not_a_number("loss", value, step + 1, culprits)
        return loss

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        frames = inputs.pop("frames")
        self.num_tokens += inputs["input_ids"].numel()
        if tuple(frames.shape[1:]) != self.conversation.frame_shape:
            raise AvomniError(
                f"a batch's windows are {tuple(frames.shape[1:])}, the prompt speaks of "
                f"{self.conversation.frame_shape}",
                fix="run 03_etl again",
            )
        inputs = self.on_device(inputs)
        # The copy and what follows it queue on the device; nobody waits for them here. The reader
        # does, before it writes over the frames.
        inputs |= self.conversation.inputs(
            frames.to(self.args.device, non_blocking=True), self.model.dtype
        )
        copied = None
        if self.args.device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # the reader sleeps, it does not spin
            copied.record()
        self.loader.give_back(frames, copied)
        return inputs

    def save(self, by_transformers: Callable[[], None]) -> None:
        # Weights and two moments of float32 at most, and the tokenizer's files.
        files.need_room(self.checkpoints.folder, 12 * self.num_trained + 2**25, "a checkpoint")
        by_transformers()
        self._ask_held_out()
        self.accelerator.wait_for_everyone()  # each rank writes its own random state
        if self.checkpoints.writes:
            self.checkpoints.adopt(self.state.global_step, self.history)
        self.accelerator.wait_for_everyone()

    def begin(self, max_steps: int) -> None:
        # A checkpoint's state keeps the intervals of the process that wrote it.
        self.state.compute_steps(self.args, max_steps)

    def load_optimizer(self, checkpoint: str | None) -> None:
        # With several processes transformers' own maps to the device by its name, and torch.load
        # knows no `cpu:1`.
        parts = {"optimizer.pt": self.optimizer, "scheduler.pt": self.lr_scheduler}
        for name, part in parts.items() if checkpoint else ():
            path = Path(checkpoint) / name
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _ask_held_out(self) -> None:
        step = self.state.global_step
        # A stop's checkpoint has no figure: the same run undisturbed has none there either.
        regular = step % self.args.save_steps == 0 or step == self.args.max_steps
        if self.held_out is None or not regular:
            return
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        errors = gather_object(self.held_out.errors(self.model, rank, num_ranks))
        # fsum: the same to the last bit however many ranks have answered.
        figure = math.fsum(errors) / len(errors)
        self.history = [
            *self.history,
            {"step": step, self.held_out.conversation.target.figure: figure},
        ]
        if heldout.exhausted(self.history, self.patience):
            self.control.should_training_stop = True

    def _culprits(self, batch: int) -> list[int]:
        """Windows of a batch whose loss, each taken alone, is no number; else all of the batch."""
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
        """Why training stops: going on would only write broken weights over whole ones."""
        last = self.checkpoints.last()
        kept = f"{last.name} is whole" if last else "no checkpoint was made yet"
        found = [self.loader.windows[index] for index in windows]
        samples = ", ".join(f"window {w.number} of clip {w.clip_id}" for w in found)
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
        accumulation: Batches that each process gathers before the optimizer moves.
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
        # Left out, TRL would take bfloat16 on a CPU too.
        bf16=choices["dtype"].value == "bfloat16",
        use_cpu=on_cpu,
        save_strategy="steps",
        save_steps=training.save_steps,
        # Every step is looked at, so that a gradient that is no number stops the training at once;
        # the filter would hide it.
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",  # the meter reports, with what it alone knows
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # The prompt is thousands of tokens and the vocabulary 151,936: logits of all places would
        # take gigabytes. This one makes them where a label bears the loss, and only there.
        loss_type="chunked_nll",
        max_length=None,
    )
    private.use_one_card(arguments)
    return arguments
