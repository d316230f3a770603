"""From the hub to the disk.

download  the stage: its plan, and the fetching
hub       one repository at one commit: sizes, and bytes by Range or Xet; with `xet`, all that
          talks to huggingface_hub
xet       Xet's storage, by the private names of huggingface_hub
answers   which addresses a token may go to, and what a hub's answer means: waits, where a body
          starts, refusals
backoff   backoff shared by all download threads
transfer  partial files that any later process goes on with, several at a time
remote    a file as the hub lists it
verified  what has been checked in a data folder
"""
