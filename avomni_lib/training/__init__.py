"""Training: from windows to batches to an adapter.

targets/    the texts that the model learns to generate, and their parsers
backbones/  one file per model family
prompt/     conversation and samples
model/      base model, adapter, generation
feed/       prefetching of batches
fit/        the training process
forecast/   tokens, memory and hours, estimated before the run
doctor/     tests on this machine what training relies on
export/     merged model, model card, data set in LeRobot's format
"""
