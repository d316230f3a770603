"""Which clips and chunks a run takes.

filters    which clips `download.clips` asks for
chunks     which chunks, in which order, under a number of chunks and of gigabytes; balanced clips
selection  the whole choice: licence, catalog, chunks, files
manifest   `chosen.json`: what a run has fetched
split      `split.json`: the split of each clip, frozen
evicted    `evicted.json`: raw files removed on purpose, and which runs still need them
forecast   what a run would fetch and how large files are, without the hub
"""
