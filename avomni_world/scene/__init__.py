"""The content of a scene, and its rendering.

scenes    one drive: road, traffic, events
towns     looks and speeds
drive     how the car moves
traffic   other road users
events    what happens in a scene
scenery   road, houses, trees
shapes    meshes
textures  surfaces
lens      cameras
render    panda3d
"""
