"""Prompt and samples.

conversation  prompt, tokens and labels of a sample
samples       a training's windows and their words
past          older frames before a window's own, and how they are shown smaller
history       past motion as words
views         windows with other frames: black, shuffled, one camera
tokens        tokens of a sample, counted without a tokenizer
"""
