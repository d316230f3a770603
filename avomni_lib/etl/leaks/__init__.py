"""What is held out must not be in the training.

leaks        all checks
fingerprint  perceptual hashes of frames
duplicates   two clips that hold the same drive
"""
