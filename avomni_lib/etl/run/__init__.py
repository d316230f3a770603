"""Stage 03.

build        the stage: reads clips as chunks arrive, writes shards
parts        part files of single clips, and their assembly into a shard
engines      this machine's processes, or Ray
slurm        `--shard i/n`
prefetch     fetches the next chunk while one is read, and evicts raw files, within the disk budget
disk_budget  estimates of the chunks' sizes, and whether they fit into `target_size_gb`
forecast     estimate of bytes and time before the stage starts
"""
