"""Your own recordings, packed into the data set's layout.

pack         `OwnClip`, `pack` and `check`
arguments    what the caller gave, read strictly; all mistakes of a call are reported at once
poses        poses in wgs84, ecef, ned or enu to one level frame, and to the data set's columns
conventions  whether the motion fits the frame and the axes that were named
layout       the packed files
summary      what was understood, as a table
"""
