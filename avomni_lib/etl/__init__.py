"""Stage 03: clips to memmaps.

video/  frames of a video at wanted times
clip/   one clip to arrays
cache/  the format on the disk
leaks   held-out data that the model has seen, such as the same drive in two splits
run/    the stage: workers, Ray, Slurm, the disk budget
"""
