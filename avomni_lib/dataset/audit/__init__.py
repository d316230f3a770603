"""What the source holds, what is on the disk, and what is damaged.

audit        the stage
listing      every file that an audit speaks of
scan         all files, in parallel and resumable
contents     one file read whole
calibration  calibration tables
findings     a row for each fault or remark
figures      what streams, clocks and poses have in common
"""
