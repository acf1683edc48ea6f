"""The one error type and the one warning that reach users."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwsimError(ValueError):
    """Bad input: the message names the file or field, the fault and the remedy.

    The command line prints the message as one line and exits with status 2;
    every other exception is a defect of the package and shows its traceback.
    """


class HwsimWarning(UserWarning):
    """What a user should know and nothing stops for; the command line prints the message as a line."""


def one_of(name: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """What to write instead of an unknown name: the nearest one, or else all of them.

    Parameters
    ----------
    name : object
    known : iterable of str
    otherwise : str, optional
        In place of all of them.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, 1)
    return f"did you mean {near[0]}?" if near else otherwise or f"choose one of {', '.join(names)}"
