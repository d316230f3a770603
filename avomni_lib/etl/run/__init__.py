"""The stage 03.

build        the stage: reads clips as chunks come, writes shards
parts        clips on their way into a shard
engines      this machine's processes, or Ray
slurm        `--shard i/n`
prefetch     the next chunk, fetched while one is read; evicts what is read, within the disk budget
disk_budget  what chunks take on the disk, and whether they fit under `target_size_gb`
forecast     what the stage will take
"""
