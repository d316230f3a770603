"""Pictures.

canvas         a figure that shows itself; colours; named tiles
audit          01 and 02: what is there, what is damaged, first frames, what is fetched
etl            03: frames of the cache, the disk, where windows lie
tiles          04: grids of frames
targets        05: the manoeuvre and the path ahead
training       05: the loss, the wait for data, before and after
ladder         06: the ladder with its intervals, and slices
paths          06: single windows
evaluation     06: predictions beside the ground truth
live           07 and `predict`: answers over the front camera, where a session's time goes
driving        08: the ladder of policies, where drives go wrong, a film
"""
