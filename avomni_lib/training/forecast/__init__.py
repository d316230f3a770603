"""What a training and an answer take, before they run.

answering  how long an answer takes
estimate   the whole estimate, and seconds a step
memory     the formula of the GPU's memory, part by part
"""
