"""One clip to arrays.

sampling      `sample_clip`: all arrays of a clip; the choice of the wanted times
egomotion     poses at any time
trajectory    past and future paths relative to a moment
manoeuvre     the manoeuvre of the next 3 s
tiling        cameras into tiles, tiles into the grid
fingerprints  perceptual hashes of frames
obstacles     other road users as rows
scene         other road users at a moment
"""
