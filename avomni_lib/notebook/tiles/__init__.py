"""The tile preview of 04: any choice of cameras, tile size and rate, before the ETL is run.

choice       a choice of tiling and its cost
older        frames of the past, and their cost
preview      the clips, and the data shown for each
raw_frames   grids decoded from raw clips
params_file  a choice as a params file
widgets      the preview and its controls
"""
