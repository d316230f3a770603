"""Export of a run's results.

merge    base model and adapter merged into one 16-bit model
lerobot  a run's clips as a LeRobot v3 data set
push     uploads the adapter and its card to the hub
card     the model card, and the commands that serve and convert a model
"""
