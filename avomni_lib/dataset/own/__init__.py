"""Your own recordings, packed into the data set's layout.

pack         `OwnClip`, `pack` and `check`
arguments    strict validation of arguments; all mistakes of a call are reported at once
poses        conversion of poses from wgs84, ecef, ned or enu to the data set's columns
conventions  checks that the motion is consistent with the given frame and axes
layout       the packed files
summary      summary of each clip, to compare with the actual drive
"""
