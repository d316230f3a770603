"""Stages, results and papermill.

stages      the stages, what each reads, and what came out on one line
runs        which stage is done, stale, and why
pipeline    notebooks run by papermill
raw_files   what evicted raw files mean for the stages
faults      errors and interrupts as messages, without a traceback
"""
