"""Data sets in LeRobot's v3 layout, read in place: an episode is a clip.

profile   meaning of a data set's columns and cameras: `l2d`, `rig` (our own export), or your own
motion    conversion of a table's rows to poses, with checks of consistency
layout    meta/info.json and the table of episodes, checked
episodes  the catalog of episodes: chunks, splits by session, overlaps
clip      one episode read in place, and its checks for the audit
"""
