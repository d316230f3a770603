"""A trained model that is asked about what is at hand: a window, a clip, videos in a folder.

answerer  the base model and an adapter, loaded once, that answers windows
subject   what is asked about: frames as the training's code makes them
predict   one answer, with its numbers and what was true
"""
