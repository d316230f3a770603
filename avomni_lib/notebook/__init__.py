"""Running and displaying notebooks.

run/        stages, results, papermill
tiles/      the camera preview of 04
plots/      figures
pages/      tables, the report, web pages
progress    progress bars
clip_table  the chosen clips as a data frame; first frames
"""
