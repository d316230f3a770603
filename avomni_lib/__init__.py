"""AV-Omni: from driving clips to a fine-tuned vision-language model and its evaluation.

Data flows down this list; a module imports only from those above it.

errors       the one error type
files        atomic writes, hashes, locks, free disk space
hardware     this machine, the optimizers that can train here, and the choices that follow
plan         what a stage reports before it starts, and its progress bar
cli          the commands of `avomni`: arguments, action, output
cli_examples  examples for the commands' help
workers      jobs in worker processes that may die or hang
params/      what a params file may say, and how it is read
dataset/     what a clip is and where it lives
etl/         clips to memmaps
training/    windows to batches to a model
evaluation/  answers to figures
live/        the trained model on single windows and on live cameras
driving/     policies in a simulator, and their closed-loop scores
notebook/    plots, pages, widgets, and how notebooks are run
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
