"""Does what training relies on work on this machine?

doctor    all checks, and what a training asks before it starts
machine   findings; versions that fit together, card, memory, disk, decoder, token
image     what an image for an AMD card must hold; open files, the cache of kernels
probes    small computations beside their formula
"""
