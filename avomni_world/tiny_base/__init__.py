"""The tiny base model: a Qwen3-VL of 1.8 million parameters.

make       makes it
drives     the drives that it learns from
lessons    its lessons
model      before it has learnt
tokenizer  its tokenizer
"""
