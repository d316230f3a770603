"""Running and displaying notebooks.

run/           stages, results, papermill
tiles/         the camera preview of 04
plots/         figures
pages/         tables, the report, web pages
progress       progress bars
circumstances  the chosen clips as a data frame; first frames
"""
