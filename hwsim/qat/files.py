"""Names of the files in the folder of a training run, and their removal."""

from __future__ import annotations

from pathlib import Path

from golden.errors import HwsimError

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.csv"
TRAINED = "trained.safetensors"
PROGRAM = "program.safetensors"
RESULT = "result.json"


def remove_run(folder: Path) -> None:
    """Remove what an earlier run left, so that nothing of it stands beside the files of a new one.

    Parameters
    ----------
    folder : Path
        Its other files stay.

    Raises
    ------
    HwsimError
        A file cannot be removed.
    """
    # Results first: should this be cut short, none outlives the checkpoint that tells where it comes from.
    for name in (RESULT, PROGRAM, TRAINED, LOG, CHECKPOINT):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise HwsimError(f"{folder / name}: cannot be removed ({error.strerror}); give another folder") from None
