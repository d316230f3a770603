"""What a training takes, before it runs.

estimate    the whole estimate
model_size  widths, depths and weights
memory      memory, part by part
step_time   seconds a step
"""
