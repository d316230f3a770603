"""Stages, results and papermill.

stages      the stages and what each reads
runs        which stage is done, stale, and why
pipeline    notebooks run by papermill
raw_files   what evicted raw files mean for the stages
interrupts  *Interrupt* in one sentence
headlines   a stage's figures on one line
cost        time, memory and price
artifacts   files of a stage, with their hashes
faults      errors as messages, without a traceback
"""
