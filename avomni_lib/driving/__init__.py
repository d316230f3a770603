"""Closed-loop driving: policies in a simulator, and the scores of their drives.

episode   the record of one drive
geometry  contact of boxes, and positions relative to a lane
scores    the scores of one drive
alpasim/  a driver for NVIDIA's simulator, over gRPC
carla     a driver for CARLA's leaderboard
ladder    the scores of all policies, with intervals and claims
drive     runs the policies in the rendered world and keeps every drive
policies  constant motion, a regression on past motion, the trained model, the user's own
"""
