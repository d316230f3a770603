"""Reading ahead of the step.

loader       one thread and a ring of buffers
map_dataset  the cache as a PyTorch data set
"""
