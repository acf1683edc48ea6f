"""What a training run is made of; a checkpoint holds it and resumes only the same."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from golden.errors import HwsimError

STARTS = ("lsq", "omse")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Parameters
    ----------
    shift : int
        Translation by up to so many pixels.
    flip : bool
        Horizontal flip of half of the images.
    erase : float
        Probability of a rectangle of 4 to 14 pixels a side, set to the mean pixel.
    crop : float
        Least share of the area of a crop that is resized to the network's size; 0 takes the whole image. For
        images read from a folder.

    Raises
    ------
    HwsimError
        A value out of range.
    """

    shift: int = 0
    flip: bool = False
    erase: float = 0.0
    crop: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or not 0 <= self.erase <= 1 or not 0 <= self.crop <= 1:
            raise HwsimError(f"augmentation {self}: shift must be 0 or more, erase and crop between 0 and 1")

    def __str__(self) -> str:
        parts = [f"shift={self.shift}"] * bool(self.shift) + ["flip"] * self.flip
        parts += [f"{name}={getattr(self, name):g}" for name in ("erase", "crop") if getattr(self, name)]
        return ",".join(parts) or "none"

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read "shift=2,flip,erase=0.25", "crop=0.08,flip" or "none".

        Raises
        ------
        HwsimError
            Something else.
        """
        values: dict[str, Any] = {}
        for part in text.split(",") if text != "none" else ():
            name, _, value = part.strip().partition("=")
            try:
                values[name] = {"shift": int, "erase": float, "crop": float}[name](value) if name != "flip" else True
            except (KeyError, ValueError):
                raise HwsimError(
                    f"augmentation {text!r}: {part!r} is not one of shift=PIXELS, flip, erase=PROBABILITY, crop=AREA; "
                    'write "none" for no augmentation'
                ) from None
        return cls(**values)


# Shipped networks are trained so, see hwsim/networks/train.py; of ImageNet the usual crops.
ARRAY_AUGMENTATION = Augmentation(shift=2, erase=0.25)
FOLDER_AUGMENTATION = Augmentation(flip=True, crop=0.08)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the result of a run, beside network, recipe and data.

    The defaults are the paper's (section 5.1): LAMB, 300 epochs of batches of 512 at 2e-4 without warm-up and weight
    decay; the cosine is that of DeiT's schedule.

    Parameters
    ----------
    epochs, batch : int
        `batch` counts the images of all processes.
    learning_rate : float
        Peak of the cosine schedule.
    warmup : float
        Epochs of a linear warm-up.
    weight_decay : float
        timm's LAMB adapts the rate of each layer where this is not 0; at 0 it is Adam on clipped gradients.
    clip : float
        Largest norm of the gradient of all parameters; 0 does not clip.
    distillation : bool
        Half of the classification loss is against the class that the float network sees (Eq. 5).
    dgd : float
        Weight of the distribution guided distillation (Eq. 11), 1 as published; 0 is without.
    start : {"lsq", "omse"}
        First steps of the activations: LSQ's formula, or least squared error on the calibration images.
    augmentation : Augmentation
    precision : {"fp32", "bf16"}
        Of linear layers and matrix products in training. Weights, steps and the optimizer have float32.
    seed : int

    Raises
    ------
    HwsimError
        A value out of range, with its name.
    """

    epochs: int = 300
    batch: int = 512
    learning_rate: float = 2e-4
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    distillation: bool = True
    dgd: float = 1.0
    start: str = "lsq"
    augmentation: Augmentation = ARRAY_AUGMENTATION
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch": (self.batch >= 2, "2 or more, a batch of 1 says nothing about the distribution of a step"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "warmup": (0 <= self.warmup < self.epochs, f"0 or more and below the {self.epochs} epochs"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "clip": (0 <= self.clip < math.inf, "0 or more"),
            "dgd": (0 <= self.dgd < math.inf, "0 or more"),
            "start": (self.start in STARTS, " or ".join(STARTS)),
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            "seed": (0 <= self.seed < 1 << 63, "0 or more"),
        }
        for name, (good, needed) in checks.items():
            if not good:
                raise HwsimError(f"training: {name.replace('_', ' ')} must be {needed}, not {getattr(self, name)}")

    def record(self) -> dict[str, Any]:
        """JSON values, by field."""
        return {**asdict(self), "augmentation": str(self.augmentation)}

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0 over all epochs of `steps` steps each."""
        warmup, total = round(self.warmup * steps), self.epochs * steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
