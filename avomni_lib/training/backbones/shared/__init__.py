"""What several families share; each file beside this folder is one family.

base           the interface, and what a window shows
size           widths, depths and weights of any model, for the estimates
decoder        layers of language models that several families are built on, counted
squares        a grid cut into squares, for vision towers that take nothing else
vision_layers  what is changed of a loaded model around its vision tower
qwen_layers    layers of Qwen's models that transformers computes in many small kernels
"""
