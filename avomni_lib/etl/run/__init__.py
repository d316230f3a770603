"""Stage 03.

build        the stage: reads clips as chunks arrive, writes shards
parts        part files of single clips, and their assembly into a shard
engines      this machine's processes, or Ray
slurm        `--shard i/n`
prefetch     fetches the next chunk while one is read, and evicts raw files
disk_budget  the bound on the disk: what may be fetched, read and written within `target_size_gb`
forecast     estimate of bytes and time before the stage starts
"""
