"""The same program in another process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from conftest import quick, small_model
from hwsim.networks.vision_transformer import vision_transformer_graph
from hwsim.program import save_program
from hwsim.quantize.adalog import adalog
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.lowering import lower
from hwsim.quantize.ptq4vit import ptq4vit
from hwsim.quantize.recipe import fq_vit
from hwsim.quantize.search.settings import ScaleSearch

RECIPES = {
    "fq-vit": fq_vit("8/8/4", range="omse", calibration_batch=4),
    "ptq4vit": dataclasses.replace(ptq4vit("6/6/6"), search=ScaleSearch(candidates=8, rounds=1)),
    "adalog": quick(adalog("4/4/4", calibration_batch=8)),
}


def write_programs(images: np.ndarray, folder: Path) -> None:
    """The small network by each recipe."""
    graph = vision_transformer_graph(small_model(), "small", mean=(0.52, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    for name, recipe in RECIPES.items():
        save_program(lower(calibrate(graph, images, recipe)), folder / name)


# torch splits sums over its threads, so that their number is one of the things that stay.
CHILD = """
import sys
from pathlib import Path
import numpy as np
import torch
from test_determinism import write_programs
torch.set_num_threads(int(sys.argv[1]))
write_programs(np.load(sys.argv[2]), Path(sys.argv[3]))
"""


def test_another_process_makes_the_same_programs(small_images: np.ndarray, tmp_path: Path) -> None:
    """Sets and hashes of names have another order there."""
    images = small_images[:8]
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    write_programs(images, here)
    np.save(tmp_path / "images.npy", images)
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "4321"}
    child = [sys.executable, "-c", CHILD, str(torch.get_num_threads()), str(tmp_path / "images.npy"), str(there)]
    subprocess.run(child, cwd=Path(__file__).parent, env=environment, check=True)
    for name in RECIPES:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
