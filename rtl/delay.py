"""A value some cycles later."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, Value


def delay(
    m: Module, value: Any, name: str, stages: int = 1, *, enable: Value | None = None, reset_less: bool = True
) -> Any:
    """`value` as it was `stages` enabled cycles ago, in registers ``<name>_1``, ``<name>_2``, ... (one: ``<name>``).

    Parameters
    ----------
    m : Module
        Where the registers go.
    value : Value or data.View
    name : str
    stages : int
        0 or more.
    enable : Value, optional
        The registers move; without it they always do.
    reset_less : bool
        False for what must be low after a reset, such as valid bits.
    """
    value = value if hasattr(value, "shape") else Value.cast(value)
    for stage in range(1, stages + 1):
        register = name if stages == 1 else f"{name}_{stage}"
        previous, value = value, Signal(value.shape(), name=register, reset_less=reset_less)
        if enable is None:
            m.d.sync += value.eq(previous)
        else:
            with m.If(enable):
                m.d.sync += value.eq(previous)
    return value
