"""The preview of 04: any choice of cameras, tile and rate, before an ETL is paid for.

choice       which cameras, how large, how often, and what it costs
older        frames of the past, and their cost
preview      the clips, and what is shown of them
raw_frames   grids out of raw clips
params_file  a choice written into a params file
widgets      the preview and its controls
"""
