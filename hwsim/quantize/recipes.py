"""The published systems and their result tables by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hwsim.quantize.adalog import (
    adalog,
    attention_table,
    component_table,
    gelu_table,
    main_table,
    reconstruction_table,
    repq_vit,
    search_table,
)
from hwsim.quantize.ptq4vit import base_ptq, ptq4vit, ptq4vit_table
from hwsim.quantize.q_vit import q_vit
from hwsim.quantize.recipe import Recipe, fq_vit, fq_vit_table

RECIPES: dict[str, Callable[..., Recipe]] = {
    "fq-vit": fq_vit,
    "base-ptq": base_ptq,
    "ptq4vit": ptq4vit,
    "repq-vit": repq_vit,
    "adalog": adalog,
    "q-vit": q_vit,
}


def width_table(batch: int) -> dict[str, Recipe]:
    """All systems from 8 bits down to 2, Q-ViT untrained; FQ-ViT's attention has at most its published 4 bits."""
    rows: dict[str, Recipe] = {}
    for width in (8, 6, 5, 4, 3, 2):
        bits = f"{width}/{width}/{width}"
        published = f"{width}/{width}/{min(width, 4)}"
        rows[f"FQ-ViT {published}"] = fq_vit(published, calibration_batch=batch)
        rows[f"PTQ4ViT {bits}"] = ptq4vit(bits, calibration_batch=batch)
        rows[f"RepQ-ViT {bits}"] = repq_vit(bits, calibration_batch=batch)
        rows[f"AdaLog {bits}"] = adalog(bits, calibration_batch=batch)
        rows[f"Q-ViT, untrained {bits}"] = q_vit(bits, calibration_batch=batch)
    return rows


# From the images a calibration batch to recipes by row label.
TABLES: dict[str, Callable[[int], dict[str, Recipe]]] = {
    "fq-vit": fq_vit_table,
    "ptq4vit": ptq4vit_table,
    "ptq4vit-as-released": partial(ptq4vit_table, as_released=True),
    "adalog": main_table,
    "adalog-components": component_table,
    "adalog-searches": search_table,
    "adalog-attention": attention_table,
    "adalog-gelu": gelu_table,
    "adalog-reconstruction": reconstruction_table,
    "widths": width_table,
}
