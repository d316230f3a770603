"""Stage 01: what the source has, what is on the disk, and what is damaged.

audit    the stage, and statistics over all streams, clocks and poses
listing  the files of an audit, compared with the source's list
scan     checks of all files, in parallel and resumable
file     checks of one file, quick or complete
"""
