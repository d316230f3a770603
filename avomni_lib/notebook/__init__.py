"""What people see, and how notebooks are run.

run/           stages, results, papermill
tiles/         the preview of 04
plots/         pictures
pages/         tables, the report, web pages
progress       bars
circumstances  the chosen clips as a data frame; first frames
"""
