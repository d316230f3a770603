"""Which clips and chunks a run takes.

chunks     the clips that match `download.clips`, and the chunks to take within the limits
selection  the complete selection: licence, catalog, chunks, files
forecast   estimated chunks, clips and file sizes, without the hub
manifest   `chosen.json`: the files and clips of a run
split      `split.json`: the frozen split of each clip
protocol   public evaluation protocols: clips, time, published results
evicted    `evicted.json`: evicted raw files, and which runs still need raw files
"""
