"""The one error type and the one warning that reach users."""

from __future__ import annotations


class HwsimError(ValueError):
    """Bad input: the message names the file or field, the fault and the remedy.

    The command line prints the message as one line and exits with status 2;
    every other exception is a defect of the package and shows its traceback.
    """


class HwsimWarning(UserWarning):
    """What a user should know and nothing stops for; the command line prints the message as a line."""
