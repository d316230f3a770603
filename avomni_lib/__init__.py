"""AV-Omni: driving clips to a fine-tuned vision-language model and a score to be believed.

Data flows down this list, and imports go up it.

params       a params file, read and checked
section      what a section of a params file is: how values are read
lerobot_section  how a LeRobot data set is to be understood
sections     every parameter: type, bounds, default, meaning
sections_online  those of a trained model at work: live cameras, driving
params_yaml  the text of params files and of `--set`, read strictly
params_earlier  keys of the earlier project's params files
params_cell  a notebook's parameters cell
grids        the rig's cameras by name, and the grids that a params file may ask for
own_code     objects that a user wrote and a params file names
errors       the one error type
files        files that appear whole or not at all, hashes, locks, room on the disk
hardware     this machine, the optimizers that can train here, and the choices that follow
plan         what a stage says before it works, and its progress bar
cli          what each command of `avomni` takes, does and returns
cli_examples  examples of each, for its help
workers      jobs in processes that may die or hang
dataset/     what a clip is and where it lives
etl/         clips to memmaps
training/    windows to batches to a model
evaluation/  answers to figures
live/        the trained model asked: predict, live cameras
driving/     a policy in a simulator, and what its drives are worth
notebook/    what people see, and how notebooks are run
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
