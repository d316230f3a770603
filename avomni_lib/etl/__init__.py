"""Clips to memmaps: the stage 03.

video/  frames of a video at wanted times
clip/  one clip to arrays
cache/  the format on the disk
leaks  the same drive in two splits, and what else is held out and was seen
run/   the stage: workers, Ray, Slurm, the disk budget
"""
