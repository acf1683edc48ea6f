"""Quantization-aware training: a float graph trained under fake quantization, ending in a `Calibration`.

settings      what a run is made of                  data          batches that a seed, an epoch and a step decide
operations    a graph's operations for training      start         steps and zero points before the first step
network       the trainable network                  distillation  the losses of Q-ViT (Eq. 5, 10, 11)
step          forward, backward, optimizer           trainer       epochs, log, checkpoints
checkpoint    files that resume a run                export        trained network -> calibration, and its file
distributed   several processes under torchrun       ablation      many runs and their table
files         names in the folder of a run
"""
