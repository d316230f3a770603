"""The stage 03.

build        the stage
build_loop   reads clips as chunks come, writes shards, evicts raw files
parts        clips on their way into a shard
engines      this machine's processes, or Ray
slurm        `--shard i/n`
prefetch     the next chunk, fetched while one is read
chunk_fetch  one chunk's files, in a thread
disk_budget  raw files and cache under `target_size_gb`
costs        what chunks take on the disk
sizes        what chunks will take, estimated from what is there
forecast     what the stage will take
"""
