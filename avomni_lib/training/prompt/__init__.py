"""Prompt and samples.

conversation  prompt, tokens and labels of a sample: only the answer bears the loss
samples       the windows of a run, and their samples
past          older frames before a window's own, downscaled
history       past motion as text
views         windows with modified frames: black, shuffled, one camera
tokens        number of tokens of a sample, estimated without a tokenizer
"""
