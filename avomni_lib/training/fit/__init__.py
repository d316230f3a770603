"""The training process.

trainer      the stage: plan and training
job          starts, follows and stops the training process, and reads its outcome
worker       the training process
sft          TRL's SFTTrainer on our windows
preview      tokens, LoRA modules and trainer arguments, to inspect before training
checkpoints  atomic checkpoints with checksums, and metrics.jsonl
meter        metrics of each step
energy       load, power and temperature of the cards
heldout      the held-out figure
environment  removes environment variables that would change a training
"""
