"""Cosimulation of somebody else's unit: the same vectors, bench and scoreboard as for ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from golden.errors import HwsimError
from golden.vectors import UnitVectors
from rtl import axi, catalog
from sim_tests.adapter import adapter
from sim_tests.beats import words_of
from sim_tests.cosim import CosimResult, Cosimulation, Device
from sim_tests.inspect_verilog import module_ports
from sim_tests.ports import PortMap, WritePort
from sim_tests.simulate import BeatBits
from sim_tests.stimulus import beat_bits, stimulus
from sim_tests.toolchain import Toolchain, find_toolchain


def cosimulate_foreign(
    vectors: Sequence[UnitVectors],
    sources: Sequence[Path],
    top: str,
    ports: PortMap,
    *,
    build_dir: Path,
    stall_seed: int | None = None,
    waveform: bool = True,
) -> list[CosimResult]:
    """Run layers through somebody else's unit and compare every output element.

    Layers share a build unless the parameters that the map takes from them differ.

    Parameters
    ----------
    vectors : sequence of UnitVectors
        Of the kind that the map names.
    sources : sequence of Path
        Their Verilog, in the order in which it must be read.
    top : str
        Their module.
    ports : PortMap
    build_dir : Path
    stall_seed : int, optional
        Stalls at random on both sides, or on the sides that can be stalled.
    waveform : bool
        Leave a waveform of the first mismatch of a build.

    Returns
    -------
    list of CosimResult
        In the order of `vectors`.

    Raises
    ------
    HwsimError
        A file cannot be read, the Verilog is wrong, the map does not fit, or a tool is missing.
    """
    tools = find_toolchain()
    others = [ports.path.parent / name for name in ports.files]
    texts = {path.name: _read(path) for path in [*sources, *others]}
    if len(texts) < len(sources) + len(others):
        raise HwsimError("two of the Verilog files have the same name; rename one")
    builds: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for place, layer in enumerate(vectors):
        if layer.spec.kind != ports.unit:
            raise HwsimError(f"{ports.path}: unit is {ports.unit}, but {layer.layer} is a {layer.spec.kind}")
        builds.setdefault(tuple(_parameters(ports, layer).items()), []).append(place)
    results: dict[int, CosimResult] = {}
    for parameters, places in builds.items():
        layers = [vectors[place] for place in places]
        cosimulation = _prepare(layers, texts, top, ports, dict(parameters), Path(build_dir).absolute(), tools)
        results |= zip(places, cosimulation.run(stall_seed, waveform), strict=True)
    return [results[place] for place in range(len(vectors))]


def silent(result: CosimResult, ports: PortMap) -> str | None:
    """What to look at when a unit never gave anything, or None if it did."""
    first = result.first_mismatch
    if first is None or first.got != "nothing" or result.mismatches < result.compared:
        return None
    reset = "it has none in the map" if ports.reset is None else f"active {'high' if ports.reset_high else 'low'}"
    return (
        f"the unit gave nothing at all for {result.layer}; check in {ports.path} the reset ({reset}), "
        f"valid and ready of both sides{'' if ports.input.last else ', and that it knows the row length without last'}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise HwsimError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None


def _parameters(ports: PortMap, layer: UnitVectors) -> dict[str, str]:
    """Parameters of their module for a layer, as Verilog numbers."""
    found = {}
    for name, value in ports.parameters.items():
        if isinstance(value, int):
            found[name] = str(value)
        elif value[0] == "spec":
            fields = layer.spec.to_dict()
            if not isinstance(fields.get(value[1]), int):
                raise HwsimError(
                    f"{ports.path}: parameters.{name}: the spec of {layer.layer} has no number {value[1]}; "
                    f"there are {', '.join(key for key, field in fields.items() if isinstance(field, int))}"
                )
            found[name] = str(fields[value[1]])
        else:
            _, constant, bits = value
            entries = _constant(ports, layer, str(constant)).reshape(-1).tolist()
            width = int(bits)
            low, high = min(entries), max(entries)
            if low < -(1 << width - 1) or high >= 1 << width:
                raise HwsimError(
                    f"{ports.path}: parameters.{name}: {constant} of {layer.layer} does not fit {width} bits"
                )
            packed = sum((entry & ((1 << width) - 1)) << width * place for place, entry in enumerate(entries))
            found[name] = f"{width * len(entries)}'h{packed:x}"
    return found


def _constant(ports: PortMap, layer: UnitVectors, name: str) -> np.ndarray:
    if name not in layer.constants:
        raise HwsimError(
            f"{ports.path}: {layer.spec.kind} has no constant {name}; there are {', '.join(layer.constants)}"
        )
    return np.asarray(layer.constants[name])


def _prepare(
    layers: Sequence[UnitVectors],
    texts: Mapping[str, str],
    top: str,
    ports: PortMap,
    parameters: Mapping[str, str],
    build_dir: Path,
    tools: Toolchain,
) -> Cosimulation:
    """Adapter and stimulus of layers that share a build."""
    # Ours is not simulated: it says how elements of the kind look.
    unit = catalog.covering([(layer.spec, layer.constants) for layer in layers], lanes=ports.lanes)
    theirs = module_ports(texts, top, parameters, tools)
    dice = np.random.default_rng(0)
    stimuli = [stimulus(unit, layer, dice) for layer in layers]
    lengths = [int(expected.beats.keep.sum()) // expected.rows for _, expected in stimuli]
    module = f"{top}_adapter"
    text = adapter(module, top, ports, theirs, unit, parameters, lengths)
    defines, write_bytes = [], 1
    if ports.constants is not None:
        widths = [theirs[name].width for name in (ports.constants.address, ports.constants.data)]
        write_bytes = sum(axi.padded_bytes(width) for width in widths)
        defines.append("LOADABLE")
    words = [_words(ports, layer, ports.constants, theirs) for layer in layers]
    stimuli = [(replace(play, words=own), expected) for own, (play, expected) in zip(words, stimuli, strict=True)]
    if ports.output.ready is None:
        defines.append("ALWAYS_READY")
    bits = beat_bits(unit)
    device = Device(
        module=module,
        verilog=text,
        element=axi.element_of(unit.o.payload),
        bits=BeatBits(bits.in_bytes, bits.out_bytes, write_bytes),
        defines=tuple(defines),
        foreign=texts,
    )
    return Cosimulation(device, layers, stimuli, build_dir, tools)


def _words(ports: PortMap, layer: UnitVectors, write: WritePort | None, theirs: Mapping[str, axi.Port]) -> np.ndarray:
    """Writes of a layer's constants to their addresses."""
    if write is None:
        return np.zeros((0, 1), np.uint8)
    address, word = theirs[write.address].width, theirs[write.data].width
    pairs = []
    for name, start in write.words:
        for place, value in enumerate(_constant(ports, layer, name).reshape(-1).tolist()):
            if (start + place) >> address:
                raise HwsimError(
                    f"{ports.path}: constants: {name} of {layer.layer} needs address {start + place}, "
                    f"beyond the {address} bits of {write.address}"
                )
            if not -(1 << word - 1) <= value < 1 << word:
                raise HwsimError(
                    f"{ports.path}: constants: {name} of {layer.layer} holds {value}, "
                    f"beyond the {word} bits of {write.data}"
                )
            pairs.append((start + place, value))
    return words_of(pairs, address, word)
