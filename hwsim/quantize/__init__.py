"""Calibration: from a float graph and images to a quantized network and its integer program."""
