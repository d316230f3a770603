"""The tiny base model: a Qwen3-VL of 1.8 million parameters.

make       trains it
drives     its training data
lessons    its training stages
model      its architecture and initial weights
tokenizer  its tokenizer
"""
