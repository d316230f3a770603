"""What is held out must not be in the training.

leaks       all checks
duplicates  two clips that hold the same drive
"""
