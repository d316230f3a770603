"""What leaves the run.

merge  base and adapter as one 16-bit model
card   the model card, and the command lines that serve and convert a model
"""
