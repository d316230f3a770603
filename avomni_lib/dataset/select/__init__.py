"""Which clips and chunks a run takes.

filters    which clips `download.clips` asks for
chunks     which chunks, in which order, under a number of chunks and of gigabytes
balance    as many clips of each group
selection  the whole choice: licence, catalog, chunks, files
manifest   `chosen.json`: what a run has fetched
split      `split.json`: the split of each clip, frozen
evicted    `evicted.json`: raw files removed on purpose
users      which runs use the raw files of a data folder
sizes      file sizes, estimated without the hub
forecast   what a run would fetch, without the hub
"""
