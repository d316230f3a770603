"""Answers to figures.

ladder        the stage: the model beside everything that it has to beat
answer        answers of a model to held-out windows, resumable
metrics       the table of answers, and all figures that follow from it
scores        the table as matrices, and each figure of each window
trajectories  displacement errors, comfort and missed turns of paths
bootstrap     intervals, by clips
slices        figures by speed, turn, country, hour and platform
claims        what the intervals allow to be said
comparison    two runs on the windows that both answered
spread        a run over several seeds
baselines     the rows without eyes: constants, extrapolated motion, regression on past motion
held_out      which windows are scored
before_after  answers of some windows before and after the training
"""
