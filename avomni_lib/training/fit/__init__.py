"""The training process.

trainer      the stage
job          the process: started, followed, stopped
worker       what runs in it
sft          TRL's SFTTrainer on our windows
preview      tokens, LoRA modules and arguments, to be looked at before
checkpoints  checkpoints that are whole or not there
meter        metrics of each step
energy       what the cards do and draw meanwhile
heldout      the held-out figure
checksums    size and sha256 of each file of a checkpoint
environment  variables that would change a training
outcome      what came out
"""
