"""Base model and adapter.

place        where a base model lies
load         the base in 4 bit and its adapter, by Unsloth or by PEFT
adapter      an adapter's folder and its record
model_input  what the model sees, recorded and compared
generate     answers, greedy or sampled
seen         features of frames that two windows share, computed once
constrained  answers held to a target's form
private      the private names of transformers that are used
"""
