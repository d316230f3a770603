"""Drives as a data set.

dataset     the whole data set, by processes
recording   one clip's videos and tables
layout      upstream's names and folders
tables      upstream's schemas
attributes  country, hour, platform
obstacles   obstacle labels
"""
