"""From the hub to the disk.

download   the stage: plan and download
hub        one repository at one commit: file sizes, and content by Range or Xet; with `xet`, the
           only module that uses huggingface_hub
xet        Xet's storage, through private names of huggingface_hub
responses  addresses to which a token may be sent, and the meaning of a hub's responses
backoff    backoff shared by all download threads
transfer   resumable downloads of several files at a time
remote     a file as listed by the hub
verified   record of the verified files in a data folder
"""
