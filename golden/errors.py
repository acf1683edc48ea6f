"""The one error type that reaches users."""

from __future__ import annotations


class HwsimError(ValueError):
    """Bad input: the message names the file or field, the fault and the remedy.

    The command line prints the message as one line and exits with status 2;
    every other exception is a defect of the package and shows its traceback.
    """
