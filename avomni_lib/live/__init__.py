"""A trained model that is asked about what is at hand: a window, a clip, videos, live cameras.

answerer   the base model and an adapter, loaded once, that answers windows
subject    what is asked about: frames as the training's code makes them
predict    one answer, with its numbers and what was true
sources    cameras as PyAV opens them, each read by a thread
rosbag     pictures out of a ROS bag as a camera
ticks      frames of several cameras onto one clock
stream     ticks to windows, of which the newest is answered
session    cameras, windows and answers together, and their record
playback   a clip of the run as live cameras, and what is true of its moments
recording  what a session has recorded: ticks, answers, the truth beside them
answering  a session with a run's model and its page, and its latency
remote     answers of a server with OpenAI's endpoint
page       the page that shows a session
"""
