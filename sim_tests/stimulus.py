"""What a unit is sent and what it must give for a layer: the same for every tier of verification."""

from __future__ import annotations

import numpy as np

from golden.vectors import UnitVectors
from rtl import axi, catalog
from rtl.stream import StreamUnit
from sim_tests.beats import beats_of, words_of
from sim_tests.compare import Expected
from sim_tests.simulate import BeatBits, Play


def stimulus(unit: StreamUnit, layer: UnitVectors, padding: np.random.Generator) -> tuple[Play, Expected]:
    """Words that load a layer's constants, beats to send, and the beats that must come.

    Parameters
    ----------
    unit : StreamUnit
        Built for the layer; a baked unit gets no words.
    layer : UnitVectors
    padding : Generator
        Fills the padding of bytes and empty lanes of the beats to send.
    """
    rows = catalog.entry(layer.spec.kind).rows(unit, layer)
    beats = beats_of(axi.element_of(unit.i.payload), len(unit.i.payload.keep), rows.inputs, padding=padding)
    given = beats_of(axi.element_of(unit.o.payload), len(unit.o.payload.keep), [rows.output])
    expected = Expected(given, len(rows.output))
    return Play(constant_words(unit, layer), beats.packed(), len(given.last)), expected


def beat_bits(unit: StreamUnit) -> BeatBits:
    """Widths of the beats and words of a unit."""
    widths = {port.name: port.width // 8 for port in axi.ports(unit)}
    return BeatBits(widths["s_axis_tdata"], widths["m_axis_tdata"], widths.get("s_axis_write_tdata", 1))


def constant_words(unit: StreamUnit, layer: UnitVectors) -> np.ndarray:
    """Words that load a layer's constants, uint8 [words, bytes]; none for a baked unit."""
    if not unit.loadable:
        return np.zeros((0, 1), np.uint8)
    port = unit.w.payload
    return words_of(unit.writes(layer.spec, layer.constants), len(port.address), len(port.data))
