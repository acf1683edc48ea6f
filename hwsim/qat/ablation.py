"""Many training runs on the embedded networks, side by side, and their table (Q-ViT, Table 1)."""

from __future__ import annotations

import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.networks import embedded
from hwsim.qat.files import PROGRAM, TRAINED
from hwsim.qat.settings import TrainingSettings

if TYPE_CHECKING:
    import pandas as pd

    from hwsim.data import ImageSet
    from hwsim.networks.graph import FloatGraph
    from hwsim.qat.data import TrainingData

# IRM and DGD of each part of the table, by its label.
PARTS = {"baseline": (False, False), "irm": (True, False), "dgd": (False, True), "irm+dgd": (True, True)}
SETTINGS = "settings.json"
# Fields of the settings' file, with the name of a network behind.
OF_NETWORK = ("weights_of_", "training_data_of_")


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    network : str
        A key of `hwsim.networks.embedded.NETWORKS`.
    bits, part : str
        Width, and a key of `PARTS`.
    seed : int
    """

    network: str
    bits: str
    part: str
    seed: int

    @property
    def label(self) -> str:
        """Name of the run and of its folder."""
        return f"{self.network}-{self.bits}bit-{self.part}-seed{self.seed}"


def runs(networks: str, widths: str, parts: str, seeds: str) -> list[Run]:
    """Every combination of values with commas between.

    Raises
    ------
    HwsimError
        A value that is not known.
    """
    known: tuple[tuple[str, str, Sequence[str] | None], ...] = (
        ("network", networks, list(embedded.NETWORKS)),
        ("width", widths, [str(width) for width in range(2, 9)]),
        ("part", parts, list(PARTS)),
        ("seed", seeds, None),
    )
    lists = []
    for name, text, allowed in known:
        values = [value.strip() for value in text.split(",")]
        for value in values:
            if value not in allowed if allowed is not None else not value.isdecimal():
                needed = f"one of {', '.join(allowed)}" if allowed else "a number"
                raise HwsimError(f"ablation: the {name} {value!r} must be {needed}")
        lists.append(values)
    # Wide to narrow in the inner loop: runs that share a compiled graph do not begin at the same time.
    return [Run(n, w, p, int(s)) for n in lists[0] for s in lists[3] for w in lists[1] for p in lists[2]]


@dataclass(frozen=True)
class Ablation:
    """What all runs share.

    Parameters
    ----------
    folder : Path
        Every run has a folder in it.
    settings : TrainingSettings
        But for seed and DGD, which a run decides.
    device, speed : str
        See `hwsim.qat.trainer`.
    data : Path, optional
        Training images; those of Fashion-MNIST by default.
    images : int, optional
        Training images at most.
    calibration_images : int
    on_images : int, optional
        Test images at most.
    """

    folder: Path
    settings: TrainingSettings
    device: str
    speed: str
    data: Path | None
    images: int | None
    calibration_images: int
    on_images: int | None

    def folder_of(self, run: Run) -> Path:
        """Output of a run."""
        return self.folder / run.label

    def settings_of(self, run: Run) -> TrainingSettings:
        """Settings of a run."""
        return replace(self.settings, seed=run.seed, dgd=self.settings.dgd if PARTS[run.part][1] else 0.0)

    def claim(self, networks: Sequence[str]) -> None:
        """Write settings, weights and data into the folder, or see that they are those of the runs in it.

        Parameters
        ----------
        networks : sequence of str
            Of the runs.

        Raises
        ------
        HwsimError
            They differ; names the field.
        """
        path = self.folder / SETTINGS
        shared = {"calibration_images": self.calibration_images, "images": self.images, "on_images": self.on_images}
        mine = {**self.settings.record(), **shared}
        for network in dict.fromkeys(networks):
            mine |= self._identity(network)
        try:
            found = json.loads(path.read_text()) if path.exists() else mine
            # A folder may get runs of another network later; what earlier versions wrote has none at all.
            known = [field for field in mine if field in found or not field.startswith(OF_NETWORK)]
        except (OSError, ValueError, TypeError) as error:
            raise HwsimError(f"{path}: damaged ({error}); give another folder with -o") from None
        if not any(field.startswith(OF_NETWORK) for field in found):
            raise HwsimError(f"{path}: does not say which data its runs saw; give another folder with -o")
        for field in known:
            value = mine[field]
            if found.get(field) != value:
                raise HwsimError(
                    f"{self.folder}: its runs have {field.replace('_', ' ')} {found.get(field)}, not {value}; give "
                    "another folder with -o, or the same options"
                )
        write_atomically(path, json.dumps({**found, **mine}, indent=1) + "\n")

    def _identity(self, network: str) -> dict[str, str]:
        """What tells the weights of a network, and the images that it is trained on, from others."""
        from hwsim.networks.load import load_network
        from hwsim.qat.checkpoint import graph_digest
        from hwsim.qat.data import training_data

        graph = load_network(network)
        data = training_data(graph, self.data, self.images).fingerprint(graph.classes)
        return {f"{OF_NETWORK[0]}{network}": graph_digest(graph), f"{OF_NETWORK[1]}{network}": data}

    def train(self, chosen: Sequence[Run], jobs: int, tell: Callable[[Run, str | None], None]) -> None:
        """Train what is not done, so many runs at a time.

        Parameters
        ----------
        chosen : sequence of Run
        jobs : int
            Processes.
        tell : callable
            Called with each run that ends and what went wrong with it, if something did.

        Raises
        ------
        HwsimError
            The folder holds runs of other settings.
        """
        self.claim([run.network for run in chosen])
        left = [run for run in chosen if not _is_done(self, run)]
        if not left:
            return
        workers = min(jobs, len(left))
        # Fresh processes: CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_share_cores, initargs=(workers,)) as pool:
            futures = {pool.submit(_train, self, run): run for run in left}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, HwsimError):
                        traceback.print_exception(error)
                    tell(futures[future], None if error is None else str(error) or repr(error))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def measure_integers(self, chosen: Sequence[Run], tell: Callable[[Run, str | None], None]) -> None:
        """Make and measure the integer programs that are not measured yet, each on all cores; `tell` as of `train`."""
        from hwsim.program import save_program
        from hwsim.qat.export import load_trained
        from hwsim.qat.measure import Accuracy, integer_top1
        from hwsim.quantize.lowering import lower

        for run in chosen:
            folder = self.folder_of(run)
            accuracy = Accuracy.load(folder)
            if accuracy is None or accuracy.integer_top1 is not None:
                continue
            try:
                program = lower(load_trained(folder / TRAINED)[0])
                save_program(program, folder / PROGRAM)
                found = integer_top1(program, embedded.load_test_set().head(accuracy.images))
                replace(accuracy, integer_top1=found).save(folder)
            except HwsimError as error:
                tell(run, str(error))


def _share_cores(workers: int) -> None:
    """Threads of this process; torch reads the variables when it is imported."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ.setdefault(name, str(threads))


def _is_done(ablation: Ablation, run: Run) -> bool:
    from hwsim.qat.measure import Accuracy

    return Accuracy.load(ablation.folder_of(run)) is not None


class _Loaded(NamedTuple):
    """What a process keeps from one run to the next."""

    graph: FloatGraph
    data: TrainingData
    test: ImageSet
    float_top1: float


@lru_cache(maxsize=1)
def _loaded(network: str, data: Path | None, images: int | None, on_images: int | None, device: str) -> _Loaded:
    from hwsim.networks.load import load_network
    from hwsim.qat.data import training_data
    from hwsim.qat.measure import float_top1

    graph, test = load_network(network), embedded.load_test_set().head(on_images)
    return _Loaded(graph, training_data(graph, data, images), test, float_top1(graph, test, device=device, batch=500))


def _train(ablation: Ablation, run: Run) -> None:
    """One run from the float network to its accuracy; in a process of the pool."""
    import torch

    from hwsim.qat.distributed import Processes
    from hwsim.qat.measure import Accuracy, fake_quant_top1
    from hwsim.qat.trainer import Plan, train
    from hwsim.quantize.q_vit import q_vit

    loaded = _loaded(run.network, ablation.data, ablation.images, ablation.on_images, ablation.device)
    folder = ablation.folder_of(run)
    calibration = train(
        loaded.graph,
        q_vit(run.bits, irm=PARTS[run.part][0]),
        loaded.data,
        embedded.load_calibration_set().head(ablation.calibration_images).images,
        ablation.settings_of(run),
        Plan(folder, ablation.speed),
        Processes(0, 1, torch.device(ablation.device)),
    )
    assert calibration is not None
    found = fake_quant_top1(calibration, loaded.test, device=ablation.device, batch=500)
    Accuracy(len(loaded.test.images), loaded.float_top1, found).save(folder)


class Results(NamedTuple):
    """Accuracies as data frames.

    Attributes
    ----------
    runs : DataFrame
        A row a run that is done.
    table : DataFrame
        Means and standard deviations over the seeds.
    """

    runs: pd.DataFrame
    table: pd.DataFrame


def frame(ablation: Ablation, chosen: Sequence[Run]) -> Results:
    """The runs that are done.

    Raises
    ------
    HwsimError
        None is.
    """
    import pandas as pd

    from hwsim.qat.measure import Accuracy

    rows = []
    for run in chosen:
        accuracy = Accuracy.load(ablation.folder_of(run))
        if accuracy is not None:
            rows.append(
                {
                    "network": run.network,
                    "bits": int(run.bits),
                    "parts": run.part,
                    "seed": run.seed,
                    "images": accuracy.images,
                    "float": accuracy.float_top1,
                    "fake-quantized": accuracy.fake_quant_top1,
                    "integer": accuracy.integer_top1,
                }
            )
    if not rows:
        raise HwsimError(f"{ablation.folder}: no run is done")
    found = pd.DataFrame(rows).astype({"integer": "float64"})
    summary = []
    for (network, bits, part), group in found.groupby(["network", "bits", "parts"], sort=False):
        summary.append(
            {
                "network": network,
                "bits": bits,
                "parts": part,
                "seeds": len(group),
                "float": group["float"].mean(),
                "fake-quantized": group["fake-quantized"].mean(),
                "spread": group["fake-quantized"].std(ddof=1) if len(group) > 1 else float("nan"),
                "integer": group["integer"].mean(),
                "integer spread": group["integer"].std(ddof=1) if len(group) > 1 else float("nan"),
                "below float": (group["float"] - group["fake-quantized"]).mean(),
                "integer below fake-quantized": (group["fake-quantized"] - group["integer"]).mean(),
            }
        )
    return Results(found, pd.DataFrame(summary))


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, accuracies with two digits."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join("" if cell == "nan" else cell for cell in cells) + " |")
    return "\n".join(lines) + "\n"
