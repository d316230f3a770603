"""The demo's data and model: a rendered world in the data set's layout, and the tiny base model.

scene/     the content of a scene, and its rendering
publish/   drives as a data set
driving/   the world as a simulator
local_hub  a folder served as a hub on 127.0.0.1
tiny_base/ the tiny base model and what made it
portrait   the README's picture
compare_backbones  a small model of each family, trained on the same drives
"""
