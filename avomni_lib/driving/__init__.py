"""A policy in a simulator: what it does at the wheel, and what its drives are worth.

episode   what happened in one drive
geometry  boxes that touch, and places beside a lane
terms     one drive to its scores
alpasim/  a driver for NVIDIA's simulator, over gRPC
carla     a driver for CARLA's leaderboard
ladder    the policies' scores beside each other, with intervals and claims
drive     all of them in the rendered world, drive by drive, each kept
policies  what drives: motion that goes on, a regression on it, the trained model, a user's own
"""
