"""Stages, results and papermill.

stages      the stages, the parameters that each reads, and one-line summaries of results
runs        the state of each stage (done or stale, and why), and result.json
pipeline    runs notebooks with papermill
raw_files   the effect of evicted raw files on the state of stages
faults      converts errors and interrupts to messages without a traceback
"""
