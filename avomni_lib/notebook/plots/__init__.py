"""Figures of the notebooks.

canvas         the base figure, colours, and grids with camera names
audit          01 and 02: state of files, first frames, bytes under the budget
etl            03: frames of the cache, disk usage, positions of windows
tiles          04: grids of frames
targets        05: manoeuvre labels and the path ahead
training       05: loss, wait for data, answers before and after
ladder         06: the ladder with its intervals, and slices
paths          06: single windows
evaluation     06: predictions against the ground truth
live           07 and `predict`: answers over the front camera, latency of a session
driving        08: the ladder of policies, the course of drives, a film
"""
