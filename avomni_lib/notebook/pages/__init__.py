"""Tables, the report and web pages.

tables    parameters, choices and outcomes as data frames
report    the evaluation report on one page
web       executed notebooks as web pages
terminal  output of the command line
wording   labels and number formats of the ladder
"""
