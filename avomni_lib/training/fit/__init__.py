"""The training process.

trainer      the stage
job          the process: started, followed, stopped; what came out
worker       what runs in it
sft          TRL's SFTTrainer on our windows
preview      tokens, LoRA modules and arguments, to be looked at before
checkpoints  checkpoints that are whole or not there, checksums of a folder's files
meter        metrics of each step
energy       what the cards do and draw meanwhile
heldout      the held-out figure
environment  variables that would change a training
"""
