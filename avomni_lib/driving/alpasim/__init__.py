"""The trained model as a driver of NVIDIA's simulator AlpaSim, over gRPC (extra `[alpasim]`).

egodriver_pb2  the messages, generated from egodriver.proto, which says how
refusals       which sessions a model cannot drive, and what is wrong with a request
session        one drive: what was seen, and the path in the simulator's own frame
service        calls to sessions, errors to status codes, the server
"""
