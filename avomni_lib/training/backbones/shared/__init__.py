"""What several families share; each file beside this folder is one family.

base     the interface, and what a window shows
size     widths, depths and weights of any model, for the estimates
decoder  layers of language models that several families are built on, counted
squares  a grid cut into squares, for vision towers that take nothing else
layers   forward passes in the place of transformers' own
"""
