"""Evaluation: from the answers of models to figures.

ladder        the stage: the adapted model compared with base, blind and baseline rows; a public
              protocol with published results beside ours
answer        held-out windows, resumable answers of models to them, answers before and after
models        runs the models: in this process, in one process per card, or on a server
baselines     rows without images: constants, extrapolated motion, regression on past motion
metrics       the table of answers, and the figures computed from it, also by slices
scores        the table as matrices, and the value of each figure for each window
trajectories  displacement errors and comfort of paths
bootstrap     confidence intervals, resampled by clip
claims        the claims that the intervals support
comparison    two runs on the windows that both answered; one run over several seeds
"""
