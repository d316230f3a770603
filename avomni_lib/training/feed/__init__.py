"""Reading ahead of the step.

loader       one thread and a ring of buffers
padding      a batch's windows padded to the longest
map_dataset  the cache as a PyTorch data set
"""
