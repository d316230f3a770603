"""What a training takes, before it runs.

estimate  the whole estimate, and seconds a step
memory    the memory formula, part by part
"""
