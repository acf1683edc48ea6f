"""What goes with the Verilog of a unit into a foreign flow: a self-checking bench, a FuseSoC core and a Vivado script.

The texts are those of ``templates``; here are the facts that fill them and the memories of the bench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from amaranth.hdl import Shape

from golden import __version__
from rtl import axi
from rtl.stream import StreamUnit

# A small part of a family that most boards have, and a clock that the units reach on it.
VIVADO_PART, VIVADO_PERIOD = "xc7a35tcpg236-1", 10.0


@dataclass(frozen=True)
class BenchLayer:
    """What the bench does for a layer: load words, send beats, expect beats.

    Attributes
    ----------
    name : str
    words : uint8 [words, bytes]
        For ``s_axis_write_tdata``, lowest byte first; none for a baked unit.
    beats, expected : uint8 [beats, bytes]
        tdata, then tkeep and tlast as bits from the lowest up, each beat padded to bytes.
    """

    name: str
    words: np.ndarray
    beats: np.ndarray
    expected: np.ndarray


def bench_name(module: str) -> str:
    """Module name of the bench of a module."""
    return f"{module}_tb"


def bench(unit: StreamUnit, module: str, layers: Sequence[BenchLayer]) -> dict[str, str]:
    """A self-checking SystemVerilog bench and its memories, for simulators without Python.

    Parameters
    ----------
    unit : StreamUnit
        As exported; loadable if the layers have words.
    module : str
        Its module name.
    layers : sequence of BenchLayer
        One or more, in the order in which they run.

    Returns
    -------
    dict of str to str
        Text by file name: ``<module>_tb.sv`` first, then its ``.hex`` files.
    """
    name = bench_name(module)
    width = {port.name: port.width // 8 for port in axi.ports(unit) if port.name.endswith("tdata")}
    element = axi.element_of(unit.o.payload)
    shape = Shape.cast(element)
    memories = {
        "stimulus": _hex_lines([layer.beats for layer in layers], 9 * width["s_axis_tdata"] + 1),
        "expected": _hex_lines([layer.expected for layer in layers], 9 * width["m_axis_tdata"] + 1),
        "constants": _hex_lines([layer.words for layer in layers], 8 * width.get("s_axis_write_tdata", 1)),
    }
    counts = [f"{count:x}" for layer in layers for count in (len(layer.words), len(layer.beats), len(layer.expected))]
    text = _render(
        "bench.sv.j2",
        module=module,
        bench=name,
        layers=[layer.name for layer in layers],
        in_beats=len(memories["stimulus"]),
        out_beats=len(memories["expected"]),
        words=len(memories["constants"]),
        in_bytes=width["s_axis_tdata"],
        out_bytes=width["m_axis_tdata"],
        write_bytes=width.get("s_axis_write_tdata", 1),
        element_bytes=axi.padded_bytes(shape.width),
        signed="$signed" if shape.signed else "$unsigned",
        describe_element=axi.describe(element),
    )
    files = {f"{name}.sv": text, f"{name}.layers.hex": "\n".join(counts) + "\n"}
    return files | {f"{name}.{memory}.hex": "\n".join(lines) + "\n" for memory, lines in memories.items() if lines}


def fusesoc_core(unit: StreamUnit, module: str, bench_files: Sequence[str] = ()) -> str:
    """A FuseSoC core file (CAPI 2) with targets ``default``, ``lint`` and, with a bench, ``sim``.

    Parameters
    ----------
    bench_files : sequence of str
        Names of the files of `bench`, or none.
    """
    return _render(
        "core.yaml.j2",
        module=module,
        name=f"vit-hwsim:units:{module}:{__version__}",
        description=f"{unit.spec.kind} unit of a quantized Vision Transformer, AXI4-Stream",
        bench=bench_name(module) if bench_files else None,
        bench_data=[name for name in bench_files if name.endswith(".hex")],
    )


def vivado_script(module: str, bench_files: Sequence[str] = ()) -> str:
    """A Vivado Tcl script: project, out-of-context synthesis, utilisation and timing reports."""
    return _render(
        "vivado.tcl.j2",
        module=module,
        bench=bench_name(module) if bench_files else None,
        bench_data=[name for name in bench_files if name.endswith(".hex")],
        part=VIVADO_PART,
        period=VIVADO_PERIOD,
    )


def _hex_lines(arrays: Sequence[np.ndarray], bits: int) -> list[str]:
    """A word a line for ``$readmemh``, of bytes that are stored lowest first."""
    digits = -(-bits // 4)
    return [f"{int.from_bytes(row.tobytes(), 'little'):0{digits}x}" for array in arrays for row in array]


def _render(template: str, **values: object) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(values)
