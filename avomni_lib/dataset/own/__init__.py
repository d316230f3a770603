"""Your own recordings, packed into the data set's layout.

pack         `OwnClip` and `pack`
arguments    what the caller gave, checked all at once
frames       poses in wgs84, ecef, ned or enu to one local frame
conventions  whether the motion fits the frame and the axes that were named
motion       poses to the data set's columns
video        a recording's video, checked and cut
layout       the packed files
summary      what was understood, as a table
"""
