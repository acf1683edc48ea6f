"""Quantizers: what a recipe puts at a point. One file each, one line each in `QUANTIZERS`."""

from __future__ import annotations

import dataclasses
from typing import Any

from golden.errors import HwsimError, one_of
from hwsim.quantize.quantizers.adalog import AdaLog
from hwsim.quantize.quantizers.log2 import Log2
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, ShiftLogSqrt2
from hwsim.quantize.quantizers.power_of_two import PowerOfTwo
from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog
from hwsim.quantize.quantizers.twin import TwinGelu, TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform

# By the name that a recipe is written with.
QUANTIZERS: dict[str, type[Any]] = {
    "uniform": Uniform,
    "pts": PowerOfTwo,
    "lis": Log2,
    "adalog": AdaLog,
    "shift-adalog": ShiftAdaLog,
    "log-sqrt2": LogSqrt2,
    "shift-log-sqrt2": ShiftLogSqrt2,
    "twin-softmax": TwinSoftmax,
    "twin-gelu": TwinGelu,
}


def parse_quantizer(text: str) -> Quantizer:
    """A quantizer from text such as ``uniform:8,range=percentile,symmetric=yes``.

    Raises
    ------
    HwsimError
        An unknown name or field, or a value out of range.
    """
    name, _, rest = text.partition(":")
    if name not in QUANTIZERS:
        raise HwsimError(f"quantizer {text!r}: there is no {name!r}; {one_of(name, QUANTIZERS)}")
    kind = QUANTIZERS[name]
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        field, assigned, value = part.partition("=")
        if not assigned:
            field, value = "bits", part
        if field not in fields:
            raise HwsimError(f"quantizer {text!r}: {name} has no field {field!r}; it has {', '.join(fields)}")
        try:
            values[field] = _READ[str(fields[field])](value)
        except (ValueError, KeyError):
            raise HwsimError(f"quantizer {text!r}: {field} cannot be {value!r}") from None
    quantizer: Quantizer = kind(**values)
    return quantizer


def quantizer_text(quantizer: Quantizer, **changes: Any) -> str:
    """A quantizer, with some of its fields changed, as the text that `parse_quantizer` reads.

    Parameters
    ----------
    quantizer : Quantizer
    **changes
        Fields; whether they can have the value is seen where the text is read.
    """
    kind: type[Any] = type(quantizer)
    usual = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {name: getattr(quantizer, name) for name in usual} | changes
    others = [
        f",{name}={('no', 'yes')[value] if isinstance(value, bool) else value}"
        for name, value in values.items()
        if name != "bits" and value != usual[name]
    ]
    name = next(name for name, known in QUANTIZERS.items() if known is kind)
    return f"{name}:{values['bits']}{''.join(others)}"


_READ: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": {"yes": True, "true": True, "no": False, "false": False}.__getitem__,
}
