"""What several families share; each file beside this folder is one family.

base         the interface, and what a window shows
size         widths, depths and weights of any model, for the estimates
qwen_layers  layers of Qwen's models that transformers computes in many small kernels
"""
