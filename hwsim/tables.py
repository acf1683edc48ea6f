"""Result tables of the published systems: one network, many recipes, three accuracies a row."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.data import ImageSet
from hwsim.identity import digest_of
from hwsim.networks.graph import FloatGraph
from hwsim.quantize.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from hwsim.quantize.calibrate import Calibration

# Called with the number of images, layers or iterations that a stage has done.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class RowResult:
    """One row.

    Attributes
    ----------
    label, recipe : str
        As in the paper's table, and the recipe's own name.
    calibration_images, images : int
    float_top1 : float
        Percent.
    fake_quant_top1 : float or None
        None when the network cannot be calibrated by the recipe.
    integer_top1 : float or None
        None when the recipe has no integer program.
    note : str
        Why there is none.
    measured : str
        Date.
    calibration_seconds : float
        Of the clock: observers and search, and the reconstruction if there is one.
    tried : int
        Candidates that a search of pairs tried, see `Calibration.tried`; 0 without one.
    """

    label: str
    recipe: str
    calibration_images: int
    images: int
    float_top1: float
    fake_quant_top1: float | None
    integer_top1: float | None
    note: str
    measured: str
    calibration_seconds: float = field(compare=False)
    tried: int = 0


class ResultTable:
    """Rows of a table, each kept on disk as soon as it is known and read again while nothing has changed.

    Parameters
    ----------
    graph : FloatGraph
    calibration : ndarray of uint8 [N, H, W, C]
        Calibration images, in order.
    evaluation : ImageSet
        With labels.
    folder : Path
        For the rows that are done.
    code : str
        Digest of the code that the results depend on.
    device : str
        torch device of calibration and fake quantization; the integer program runs there too, where it is a GPU
        that can run programs.

    Raises
    ------
    HwsimError
        The evaluation set has no labels.
    """

    def __init__(
        self,
        graph: FloatGraph,
        calibration: np.ndarray,
        evaluation: ImageSet,
        *,
        folder: Path,
        code: str,
        device: str = "cpu",
    ) -> None:
        if evaluation.labels is None:
            raise HwsimError("a table needs labelled images to evaluate on; give class folders")
        self.graph = graph
        self.calibration = calibration
        self.evaluation = evaluation
        self.folder = folder
        self.device = device
        self._float_top1: float | None = None
        self._searched: tuple[str, Calibration, float] | None = None
        self._setting = digest_of(code, graph, (calibration, evaluation.images, evaluation.labels))

    def _path(self, recipe: Recipe) -> Path:
        key = hashlib.sha256(f"{self._setting} {recipe!r}".encode()).hexdigest()[:16]
        return self.folder / f"{self.graph.name}-{key}.json"

    def row(self, label: str, recipe: Recipe, progress: Callable[[str, int], Progress]) -> RowResult:
        """One row, measured or read.

        Parameters
        ----------
        label : str
        recipe : Recipe
        progress : callable
            Given the name and the number of images, layers or iterations of a stage, gives what to call as they are
            done.
        """
        path = self._path(recipe)
        if path.is_file():
            # Tables share rows, each by a label of its own.
            return replace(RowResult(**json.loads(path.read_text())), label=label)
        result = self._measure(label, recipe, progress)
        write_atomically(path, json.dumps(asdict(result), indent=1) + "\n")
        return result

    def _measure(self, label: str, recipe: Recipe, progress: Callable[[str, int], Progress]) -> RowResult:
        from hwsim.execute import Executor, top1
        from hwsim.execute.devices import beside_torch
        from hwsim.networks.interpret import Interpreter, predict
        from hwsim.quantize.fake_quant import FakeQuantNetwork
        from hwsim.quantize.lowering import lower

        images, labels = self.evaluation.images, self.evaluation.labels
        assert labels is not None
        if self._float_top1 is None:
            logits = predict(Interpreter(self.graph, self.device), images, progress=progress("float", len(images)))
            self._float_top1 = top1(logits, labels)
        fake, integer, note, tried, used = None, None, "", 0, len(self.calibration)
        start = time.perf_counter()
        try:
            calibration, seconds = self._calibrate(label, recipe, progress)
            tried, used = calibration.tried, calibration.images
            done = progress(f"{label}: fake-quantized", len(images))
            fake = top1(FakeQuantNetwork(calibration, self.device).predict(images, progress=done), labels)
            program = lower(calibration)
            done = progress(f"{label}: integer", len(images))
            integer = top1(Executor(program, beside_torch(self.device)).predict(images, progress=done), labels)
        except HwsimError as error:
            # A refusal is a result: the other rows go on.
            note = str(error)
            if fake is None:
                seconds = time.perf_counter() - start
        return RowResult(
            label=label,
            recipe=recipe.name,
            calibration_images=used,
            images=len(images),
            float_top1=self._float_top1,
            fake_quant_top1=fake,
            integer_top1=integer,
            note=note,
            measured=date.today().isoformat(),
            calibration_seconds=round(seconds, 1),
            tried=tried,
        )

    def _calibrate(
        self, label: str, recipe: Recipe, progress: Callable[[str, int], Progress]
    ) -> tuple[Calibration, float]:
        """The calibrated network and the seconds it took; rows that differ in the reconstruction share a search."""
        from hwsim.quantize.calibrate import calibrate
        from hwsim.quantize.search.run import searched_nodes

        searched = replace(recipe, name="", reconstruct=None)
        if self._searched is None or self._searched[0] != repr(searched):
            start = time.perf_counter()
            if recipe.search is None:
                stage = {"progress": progress(f"{label}: calibrating", len(self.calibration))}
            else:  # its layers take nearly all of the time
                stage = {"layers": progress(f"{label}: searching layers", len(searched_nodes(self.graph)))}
            calibration = calibrate(self.graph, self.calibration, searched, device=self.device, **stage)
            self._searched = repr(searched), calibration, time.perf_counter() - start
        _, calibration, seconds = self._searched
        calibration = replace(calibration, recipe=recipe)
        if recipe.reconstruct is None:
            return calibration, seconds
        from hwsim.quantize.reconstruct.blocks import blocks
        from hwsim.quantize.reconstruct.learn import reconstruct

        done = progress(f"{label}: reconstructing", len(blocks(calibration.graph)) * recipe.reconstruct.iterations)
        start = time.perf_counter()
        calibration = reconstruct(calibration, self.calibration, recipe.reconstruct, device=self.device, progress=done)
        return calibration, seconds + time.perf_counter() - start


def frame(rows: list[RowResult]) -> pd.DataFrame:
    """The rows as a data frame; the integer column is empty where there is no program."""
    import pandas as pd

    return pd.DataFrame([asdict(row) for row in rows])


def markdown(network: str, rows: list[RowResult], command: str) -> str:
    """The table with the command that made it; a column says how many candidates a search of pairs tried."""
    first = rows[0]
    searched = any(row.tried for row in rows)
    counts = sorted({row.calibration_images for row in rows})
    lines = [
        f"{network}: {' or '.join(map(str, counts))} calibration images, top-1 in percent of {first.images} images, "
        f"float {first.float_top1:.2f}. Measured {max(row.measured for row in rows)} with `{command}`.",
        "",
        "| | fake-quantized | integer | difference |" + " candidates |" * searched + " calibration, s |",
        "|---|--:|--:|--:|" + "--:|" * searched + "--:|",
    ]
    for row in rows:
        fake = "-" if row.fake_quant_top1 is None else f"{row.fake_quant_top1:.2f}"
        if row.fake_quant_top1 is None or row.integer_top1 is None:
            cells = f"- | {row.note}"
        else:
            cells = f"{row.integer_top1:.2f} | {row.integer_top1 - row.fake_quant_top1:+.2f}"
        tried = f" {row.tried} |" * searched
        lines.append(f"| {row.label} | {fake} | {cells} |{tried} {row.calibration_seconds:.0f} |")
    return "\n".join([*lines, ""])
