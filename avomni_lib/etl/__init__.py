"""Clips to memmaps: the stage 03.

video/  frames of a video at wanted times
clip/  one clip to arrays
cache/  the format on the disk
leaks/  the same drive in two splits
run/   the stage: workers, Ray, Slurm, the disk budget
"""
