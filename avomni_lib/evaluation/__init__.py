"""Answers to figures.

ladder        the stage: the model beside everything that it has to beat
answer        held-out windows, and the answers of a model to them, resumable
models        who answers: this process, one for each card, or a server
server        the answers of a server
baselines     the rows without eyes: constants, extrapolated motion, regression on past motion
before_after  answers to one window before and after the training
metrics       the table of answers, and all figures that follow from it, also by slices
scores        the table as matrices, and each figure of each window
trajectories  displacement errors, comfort and missed turns of paths
bootstrap     intervals, by clips
protocol      the table of a public protocol, with what others print
claims        the sentences that the intervals support
comparison    two runs on the windows that both answered; a run over several seeds
"""
