"""What a clip is and where it lives.

select/     which clips and chunks a run takes
download/   from the hub to the disk
audit/      what the source holds: each file against its hash, each clip against `checks`
own/        your recordings in the data set's layout
lerobot/    data sets in LeRobot's v3 layout
cameras     the rig's seven cameras and the grids that they are placed in
catalog     which file holds what: features.csv, the clip index, the presence of features
clip_index  clip_index.parquet: chunk and split of each clip; its country, hour, platform, events
tables      Parquet tables, with errors that name the file
clip        one clip read in place out of its chunk's files
stored_zip  members of a zip, read in place
names       checks of every name, id and size that comes from outside
checks      who decides that a clip is damaged: video, clocks, ego motion
calibration tables of lenses, mounts and cars; what is wrong with a row; points in a picture
streams     a camera's video: its container, packets and NAL units
findings    a row for each fault or remark; `refuse` raises for what is damaged
limits      what poses, clocks and video may be: one set of limits for audit, ETL and own data
"""
