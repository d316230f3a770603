"""What the source holds, what is on the disk, and what is damaged.

audit    the stage, and what streams, clocks and poses have in common
listing  every file that an audit speaks of
scan     all files, in parallel and resumable
file     one file, from the outside or read whole
"""
