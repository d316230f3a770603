"""The trained model as a driver of NVIDIA's simulator AlpaSim, over gRPC (extra `[alpasim]`).

egodriver_pb2  the messages, generated from egodriver.proto (the command is in that file)
refusals       checks whether the run's model can drive a session
session        one drive: images and poses in, a path in the simulator's frame out
service        maps calls to sessions and errors to status codes, and runs the server
"""
