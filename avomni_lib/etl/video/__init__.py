"""Frames of a video at wanted times.

reader         `read_frames`: picks frames by timestamps, with either decoder
stream         a video's packets and the times of its frames
pyav_reader    decoding by PyAV, each frame scaled into its place
decord_reader  decoding by decord
"""
