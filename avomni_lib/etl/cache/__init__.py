"""The cache's format on the disk.

shard    one shard: `.npy` arrays and a header; columns and types
memmap   the cache of a run: all shards as one
windows  windows over the cache
jpeg     frames stored as JPEG
npy      .npy files: written piece by piece, read into memory that is there already
verify   every hash and count, read again
counts   what counts must agree
"""
