"""The cache's format on the disk.

layout   arrays, columns and types of a shard
shard    one shard: `.npy` arrays and a header
memmap   the cache of a run: all shards as one
windows  windows over the cache
jpeg     frames stored as JPEG
npy      a .npy file written piece by piece
rows     rows read into memory that is there already
verify   every hash and count, read again
counts   what counts must agree
"""
