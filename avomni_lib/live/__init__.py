"""A trained model that is asked about what is at hand: a window, a clip, videos, live cameras.

answerer   the base model and an adapter, loaded once, that answers windows; one answer with its
           numbers and the ground truth
subject    what is asked about: frames as the training's code makes them
sources    cameras as PyAV opens them, each read by a thread
rosbag     pictures out of a ROS bag as a camera
ticks      frames of several cameras onto one clock, and windows, of which the newest is answered
session    cameras, windows and answers together, and their record
playback   a clip of the run as live cameras, and what is true of its moments
recording  what a session has recorded: ticks, answers, the truth beside them
answering  a session with a run's model and its page, and its latency
page       the page that shows a session
"""
