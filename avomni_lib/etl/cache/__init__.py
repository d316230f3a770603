"""The cache's format on the disk.

shard    one shard: `.npy` arrays and a header; columns and types
memmap   the cache of a run, made of shards
windows  windows over the cache
jpeg     frames stored as JPEG
verify   verification of all hashes and counts
"""
