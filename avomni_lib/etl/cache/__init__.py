"""The cache's format on the disk.

shard    one shard: `.npy` arrays and a header; columns and types
memmap   the cache of a run: all shards as one
windows  windows over the cache
jpeg     frames stored as JPEG
verify   every hash and count, read again and compared
"""
