"""Windows to batches to a model.

targets/   what the model must say, and how it is read back
backbones/  one file a model family
prompt/    conversation and samples
model/     base model, adapter, generation
feed/      reading ahead of the step
fit/       the training process
forecast/  tokens, memory and hours, before the run
doctor/    does what training relies on work on this machine?
export/    merged model and model card
"""
