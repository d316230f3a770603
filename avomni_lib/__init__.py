"""AV-Omni: from driving clips to a fine-tuned vision-language model and its evaluation.

Data flows down this list; a module imports only from those above it.

params       reading and validation of params files
section      base class of the sections of a params file: how values are converted
lerobot_section  the section about data sets in LeRobot's layout
sections     every parameter: type, bounds, default, meaning
sections_online  parameters for using a trained model: live cameras, driving
params_yaml  strict reading of params files and of `--set`
params_earlier  parameters by the names that earlier versions used
params_cell  a notebook's parameters cell
grids        the rig's cameras by name, and the grids that a params file may name
own_code     objects in user code that a params file names
errors       the one error type
files        atomic writes, hashes, locks, free disk space
hardware     this machine, the optimizers that can train here, and the choices that follow
plan         what a stage reports before it starts, and its progress bar
cli          the commands of `avomni`: arguments, action, output
cli_examples  examples for the commands' help
workers      jobs in worker processes that may die or hang
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
