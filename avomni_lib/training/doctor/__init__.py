"""Tests on this machine what training relies on.

doctor    all checks, and those that run before a training
machine   findings; compatible versions, card, memory, disk, decoder, token
image     checks of an image for AMD cards; open files, the cache of kernels
probes    small computations compared with a reference
"""
