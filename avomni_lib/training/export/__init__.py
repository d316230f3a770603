"""What leaves the run.

merge  base and adapter as one 16-bit model
lerobot  a run's clips as a LeRobot v3 data set
push   the adapter and its card to a repository of the hub
card   the model card, and the command lines that serve and convert a model
"""
