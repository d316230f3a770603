"""The tile preview of 04.

widgets      the preview
controls     its controls
preview      what it shows
choice       a choice of tiling
cost         what a choice costs
older        frames of the past, and their cost
clips        the clips that can be shown
raw_frames   grids of any choice, from raw clips
params_file  a choice written into a params file
"""
