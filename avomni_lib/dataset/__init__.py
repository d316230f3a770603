"""The data set: its files and clips, and their checks.

select/     which clips and chunks a run takes
download/   from the hub to the disk
audit/      checks of all files and clips of a run
own/        your recordings in the data set's layout
lerobot/    data sets in LeRobot's v3 layout
cameras     the rig's seven cameras and the grids that they are placed in
catalog     which file holds what: features.csv, the clip index, the presence of features
clip_index  clip_index.parquet: chunk and split of each clip; its country, hour, platform, events
tables      Parquet tables, with errors that name the file
clip        one clip, read in place from its chunk's files
stored_zip  members of a zip, read in place
names       checks of every name, id and size that comes from outside
checks      the criteria for damaged clips: video (its packets in `streams`), clocks, ego motion
calibration tables of lenses, mounts and cars; checks of a row; projection of points into a picture
streams     a camera's video: its container, packets and NAL units
findings    results of checks: faults and remarks; `refuse` raises for damage
limits      limits of poses, clocks and video, shared by audit, ETL and own data
"""
