"""Which clips and chunks a run takes.

chunks     which clips `download.clips` asks for, and which chunks hold them within the limits
selection  the whole choice: licence, catalog, chunks, files
forecast   what a run would fetch and how large files are, without the hub
manifest   `chosen.json`: what a run has fetched
split      `split.json`: the split of each clip, frozen
protocol   a public protocol: its clips, its moment, what others print
evicted    `evicted.json`: raw files removed on purpose, and which runs still need them
"""
