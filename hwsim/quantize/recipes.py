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
    repq_vit,
    search_table,
)
from hwsim.quantize.ptq4vit import base_ptq, ptq4vit, ptq4vit_table
from hwsim.quantize.recipe import Recipe, fq_vit, fq_vit_table

RECIPES: dict[str, Callable[..., Recipe]] = {
    "fq-vit": fq_vit,
    "base-ptq": base_ptq,
    "ptq4vit": ptq4vit,
    "repq-vit": repq_vit,
    "adalog": adalog,
}

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
}
