"""Code shared by the families; each file beside this folder is one family.

base     the interface, and the videos of a window
size     widths, depths and weights of a model, for estimates
decoder  sizes of the decoder layers of common language models
squares  cuts grids into squares, for vision towers that take only squares
layers   replacements for forward passes of transformers
"""
