"""Reading ahead of the step.

loader       one thread and a ring of buffers
packing      windows end to end in one row
map_dataset  the cache as a PyTorch data set
"""
