"""Estimates of a training and of an answer before they run.

answer_time  time of an answer
estimate     the estimate of a whole run, and seconds per step
memory       GPU memory by part
"""
