"""Inference with a trained model on a window, a clip, videos or live cameras.

answerer   answers windows with the base model and an adapter, loaded once; scores an answer
subject    the window to answer, built from a cache, a clip or videos as in the ETL
sources    cameras opened with PyAV, each read by its own thread
rosbag     images from a ROS bag as a camera
ticks      synchronises frames of several cameras into windows; the newest is answered
session    runs cameras, windows and answers, and records them
playback   plays a clip of the run as live cameras, with its ground truth
recording  reads a recorded session: ticks, answers and ground truth
answering  opens a session with a run's model and page; latency
page       the web page that shows a session
"""
