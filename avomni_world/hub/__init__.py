"""A hub on 127.0.0.1.

local_hub  the server
protocol   the hub's answers
wire       bytes and connections
faults     faults on demand
"""
