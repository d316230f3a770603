"""Base model and adapter.

model_path     resolves the location of a base model
load           loads the base model in 4 bit and its adapter, with Unsloth or PEFT
adapter        an adapter's folder and its record
model_input    records and compares everything that changes the model's input or answer
generate       generates answers, greedy or sampled
feature_cache  caches vision features of frames that windows share
constrained    constrains answers to a target's form
private        the private names of transformers that are used
"""
