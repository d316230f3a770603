"""Frames of a video at wanted times.

reader       `read_frames`: picks frames by timestamps, with any decoder
stream       a video's packets and the times of its frames
pyav_reader  decoding by PyAV
decoders     decoding by decord
pictures     decoded frames scaled into their place
"""
