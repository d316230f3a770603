"""What a training takes, before it runs.

estimate  the whole estimate, and seconds a step
memory    the formula of the GPU's memory, part by part
"""
