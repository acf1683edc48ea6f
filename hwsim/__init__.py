"""Fully quantized Vision Transformers as integer programs: calibration, execution, reports."""
