"""Tables, the report and web pages.

tables    tables in a notebook
report    the score on one page
web       executed notebooks as web pages
terminal  the command line's output
wording   names of the ladder's rows and figures
"""
