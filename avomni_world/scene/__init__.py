"""What stands where at a moment, and its picture.

scenes    one drive: road, traffic, events
towns     looks and speeds
drive     how the car moves
traffic   other road users
events    what happens on the way
scenery   road, houses, trees
shapes    meshes
textures  surfaces
lens      cameras
render    panda3d
"""
