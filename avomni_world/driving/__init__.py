"""The rendered world as a simulator: importing it registers `avomni_world/Drive-v0`.

env      the environment
vehicle  how the ego moves
traffic  how the others move
events   obstacles that an episode can have
expert   a driver that knows the lane and the other cars
"""

import gymnasium

gymnasium.register("avomni_world/Drive-v0", entry_point="avomni_world.driving.env:DriveEnv")
