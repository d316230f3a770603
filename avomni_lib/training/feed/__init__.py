"""Prefetching of batches.

loader       one background thread and a ring of buffers
map_dataset  the cache as a PyTorch data set
"""
