"""Data sets in LeRobot's v3 layout, read as they lie: an episode is a clip.

profile   what a data set's columns and cameras mean: `l2d`, `rig` (our own export), or your own
motion    a table's rows to poses, each conversion held against the other
layout    meta/info.json and the table of episodes, checked
episodes  the catalog of episodes: chunks, splits by session, what overlaps
clip      one episode read in place, and what the audit looks at
"""
