"""From the hub to the disk.

hub       the only module that talks to huggingface_hub
address   which addresses a token may go to
answers   headers of a hub's answer
refusals  what a refusal means and what to do
backoff   waiting for a busy hub, shared by all threads
remote    a file as the hub lists it
transfer  one file, by Range, through a partial file
batch     several files at a time
verified  what has been checked in a data folder
plan      what a download would do
download  the stage
"""
