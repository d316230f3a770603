"""What leaves the run.

merge  base and adapter as one 16-bit model
card   the model card
usage  the card's commands
"""
