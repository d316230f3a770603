"""From the hub to the disk.

download  the stage: its plan, and the fetching
hub       one repository at one commit; with `xet`, all that talks to huggingface_hub
xet       Xet's storage, by the private names of huggingface_hub
address   which addresses a token may go to
answers   what a hub's answer means: waits, ranges, refusals
backoff   backoff shared by all download threads
transfer  files by Range, through partial files, several at a time
remote    a file as the hub lists it
verified  what has been checked in a data folder
"""
