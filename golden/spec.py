"""Specs: what a unit computes, as a small frozen dataclass of integers.

A spec holds the widths and shapes that fix the arithmetic. What differs from
layer to layer and is loaded into hardware at run time (weights, tables,
multipliers, zero points) is not in the spec: these are its *constants*, integer
arrays that the spec describes by name, shape and width.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

import numpy as np

from golden.errors import HwsimError

Constants = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class IntFormat:
    """Width and signedness of an integer, as hardware sees it.

    Parameters
    ----------
    bits : int
        Width in bits, 1 to 63.
    signed : bool
        Two's complement when true.
    """

    bits: int
    signed: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 <= self.bits <= 63:
            raise HwsimError(f"an integer format must have between 1 and 63 bits, not {self.bits!r}")
        if type(self.signed) is not bool:
            raise HwsimError(f"an integer format must be signed or not (true or false), not {self.signed!r}")

    @property
    def minimum(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    @property
    def largest_magnitude(self) -> int:
        return max(-self.minimum, self.maximum)

    @property
    def dtype(self) -> np.dtype:
        """Smallest NumPy integer type that holds every value of the format."""
        for width in (8, 16, 32, 64):
            if self.bits <= width - (not self.signed and width == 64):
                return np.dtype(f"{'int' if self.signed else 'uint'}{width}")
        raise AssertionError("unreachable: formats have at most 63 bits")

    def check(self, values: np.ndarray, what: str) -> np.ndarray:
        """Return `values` in the smallest dtype, or refuse them if they do not fit."""
        array = np.asarray(values)
        if array.dtype.kind not in "iub":
            raise HwsimError(f"{what} must be integers, not {array.dtype}")
        if array.size:
            low, high = int(array.min()), int(array.max())
            if low < self.minimum or high > self.maximum:
                raise HwsimError(
                    f"{what} must be between {self.minimum} and {self.maximum} ({self}), but reaches {low}..{high}"
                )
        return array.astype(self.dtype, copy=False)

    def __str__(self) -> str:
        return f"{'signed' if self.signed else 'unsigned'} {self.bits}-bit"


@dataclass(frozen=True)
class Constant:
    """Shape and format of one constant array of a unit."""

    shape: tuple[int, ...]
    format: IntFormat


def ranged(low: int, high: int, **kwargs: Any) -> Any:
    """Declare an integer field of a spec that must lie in ``low..high``."""
    return dataclasses.field(metadata={"range": (low, high)}, **kwargs)


def one_of(*choices: str, **kwargs: Any) -> Any:
    """Declare a text field of a spec that must be one of `choices`."""
    return dataclasses.field(metadata={"choices": choices}, **kwargs)


_KINDS: dict[str, type[Spec]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, ranged, one_of))
class Spec:
    """Base of every unit spec; subclasses become frozen keyword-only dataclasses.

    A subclass names itself in `kind`, declares its fields with `ranged`,
    `one_of`, nested specs or tuples of integers, and provides

    * ``constants``: a dict of `Constant`, what the unit needs besides its inputs;
    * ``output``: the `IntFormat` of what it returns;
    * ``compute(constants, *inputs)``: the reference, on integer arrays;
    * ``input`` or ``inputs``: the `IntFormat` of its operands;
    * ``shape(*inputs)``: the shape of the result, batch axis left out.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        if cls.kind in _KINDS and _KINDS[cls.kind].__qualname__ != cls.__qualname__:
            raise TypeError(f"two specs are called {cls.kind!r}")
        _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if "range" in field.metadata:
                low, high = field.metadata["range"]
                if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                    raise HwsimError(
                        f"{self.kind} spec: {field.name} must be an integer between {low} and {high}, not {value!r}"
                    )
            if "choices" in field.metadata and value not in field.metadata["choices"]:
                choices = ", ".join(field.metadata["choices"])
                raise HwsimError(f"{self.kind} spec: {field.name} must be one of {choices}, not {value!r}")
        self.validate()

    def validate(self) -> None:
        """Check what no single field can tell; raises `HwsimError`."""

    @property
    def constants(self) -> dict[str, Constant]:
        return {}

    @property
    def output(self) -> IntFormat:
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        """Formats of the operands; units of one operand have it as `input`."""
        return (self.input,)  # type: ignore[attr-defined]

    def shape(self, *inputs: Shape) -> Shape:
        """Shape of the result without the batch axis; elementwise units keep it.

        Raises
        ------
        HwsimError
            The operands do not fit the unit.
        """
        return inputs[0]

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def prove(self, constants: Constants) -> None:
        """Prove from the constants that no accumulator can overflow; raises `HwsimError`."""

    def check_constants(self, constants: Constants, where: str = "") -> dict[str, np.ndarray]:
        """Return `constants` in their smallest dtypes after checking names, shapes and ranges.

        Raises
        ------
        HwsimError
            A constant is missing, unknown, of the wrong shape or out of range.
        """
        described = self.constants
        place = f"{where or self.kind}: "
        unknown = sorted(set(constants) - set(described))
        if unknown:
            raise HwsimError(f"{place}unknown constant {unknown[0]!r}; a {self.kind} unit has {sorted(described)}")
        checked = {}
        for name, description in described.items():
            if name not in constants:
                raise HwsimError(f"{place}constant {name!r} is missing")
            array = np.asarray(constants[name])
            if array.shape != description.shape:
                raise HwsimError(f"{place}constant {name!r} must have shape {description.shape}, not {array.shape}")
            checked[name] = description.format.check(array, f"{place}constant {name!r}")
        try:
            self.prove(checked)
        except HwsimError as error:
            raise HwsimError(f"{where}: {error}" if where else str(error)) from None
        return checked

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values, with its kind; `spec_from_dict` reads it back."""
        result: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Spec):
                value = value.to_dict()
            elif isinstance(value, IntFormat):
                value = {"bits": value.bits, "signed": value.signed}
            elif isinstance(value, tuple):
                value = list(value)
            result[field.name] = value
        return result


def spec_kinds() -> dict[str, type[Spec]]:
    """All spec classes by kind."""
    return dict(_KINDS)


def spec_from_dict(values: Mapping[str, Any], where: str = "spec") -> Spec:
    """Rebuild a spec from `Spec.to_dict`, checking every field.

    Raises
    ------
    HwsimError
        Unknown kind, unknown or missing field, value out of range.
    """
    if not isinstance(values, Mapping):
        raise HwsimError(f"{where}: a spec must be an object with its kind and fields, not {values!r}")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise HwsimError(f"{where}: unknown unit kind {kind!r}; known are {', '.join(sorted(_KINDS))}")
    cls = _KINDS[kind]
    hints = typing.get_type_hints(cls)
    names = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if name == "kind":
            continue
        if name not in names:
            raise HwsimError(f"{where}: a {kind} spec has no field {name!r}")
        arguments[name] = _decode(value, hints[name], f"{where}.{name}")
    for name, field in names.items():
        if name not in arguments and field.default is dataclasses.MISSING:
            raise HwsimError(f"{where}: field {name!r} of the {kind} spec is missing")
    return cls(**arguments)


def _decode(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if hint is IntFormat:
        if not isinstance(value, Mapping) or set(value) != {"bits", "signed"}:
            raise HwsimError(f"{where}: an integer format has the fields bits and signed, not {value!r}")
        return IntFormat(**value)
    if isinstance(hint, type) and issubclass(hint, Spec):
        spec = spec_from_dict(value, where)
        if not isinstance(spec, hint):
            raise HwsimError(f"{where}: must be a {hint.kind} spec, not {spec.kind}")
        return spec
    if isinstance(value, list):
        return tuple(value)
    return value
