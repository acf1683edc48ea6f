"""The scoreboard passes what is right and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import signed
from amaranth.lib import data

from golden.lookup import LookupSpec
from golden.vectors import UnitVectors
from sim_tests.beats import Beats, beats_of, element_text, words_of
from sim_tests.compare import Expected, Mismatch, compare
from sim_tests.simulate import Played

# Two images of three rows of five elements, two lanes: three beats a row, the last one half full.
SHAPE, LANES = (2, 3, 5), 2


@pytest.fixture
def layer() -> UnitVectors:
    codes = np.random.default_rng(0).integers(0, 256, SHAPE)
    table = np.arange(256)[None]
    spec = LookupSpec(input_bits=8, output_bits=8)
    return UnitVectors(spec, {"table": table}, (codes,), codes, None, "network", "recipe", "layer", (4, 9))


def unchanged(beats: Beats) -> None:
    pass


def outcome(
    layer: UnitVectors, change: Callable[[Beats], None] = unchanged, count: int = 18, unstable: Sequence[int] = ()
) -> tuple[int, Mismatch | None]:
    """Compare the expected beats with `count` beats, taken from cycle 100 on, that were changed on the way."""
    rows = layer.output.reshape(6, 5)
    expected = Expected(beats_of(8, LANES, [rows]), len(rows))
    got = beats_of(8, LANES, [rows])
    received = Beats(got.data.copy(), got.keep.copy(), got.last.copy())
    change(received)
    packed = received.packed()
    at = np.arange(count) + 100
    played = Played(at, at, np.resize(packed, (count, packed.shape[1])))
    return compare(layer, 8, expected, played, list(unstable), end=5000)


def wrong(layer: UnitVectors, **changes: Any) -> tuple[int, Mismatch]:
    """`outcome` of what must not pass."""
    mismatches, first = outcome(layer, **changes)
    assert first is not None
    return mismatches, first


def test_what_is_right_passes(layer: UnitVectors) -> None:
    assert outcome(layer) == (0, None)


def test_what_empty_lanes_hold_does_not_matter(layer: UnitVectors) -> None:
    def change(beats: Beats) -> None:
        beats.data[~beats.keep] = 77

    assert outcome(layer, change) == (0, None)


def test_every_single_wrong_bit_is_found(layer: UnitVectors) -> None:
    for beat in range(18):
        for lane in range(LANES if beat % 3 < 2 else 1):
            for bit in range(8):

                def change(beats: Beats, beat: int = beat, lane: int = lane, bit: int = bit) -> None:
                    beats.data[beat, lane, 0] ^= 1 << bit

                count, first = wrong(layer, change=change)
                row, place = divmod(beat, 3)
                expected = int(layer.output.reshape(6, 5)[row, 2 * place + lane])
                assert count == 1
                assert (first.image, first.row, first.element) == ((4, 9)[row // 3], row % 3, 2 * place + lane)
                assert (first.expected, first.got) == (str(expected), str(expected ^ 1 << bit))
                assert first.cycle == 100 + beat


def test_wrong_marks_are_found(layer: UnitVectors) -> None:
    def last(beats: Beats) -> None:
        beats.last[4] = True

    count, first = wrong(layer, change=last)
    assert (count, first.expected, first.got) == (1, "a beat before the last", "the last beat of a row")

    def missing_element(beats: Beats) -> None:
        beats.keep[4, 1] = False

    count, first = wrong(layer, change=missing_element)
    assert (count, first.row, first.element, first.got) == (1, 1, 3, "no element")

    def one_element_more(beats: Beats) -> None:
        beats.keep[5, 1] = True

    count, first = wrong(layer, change=one_element_more)
    assert (count, first.row, first.element, first.expected) == (1, 1, 5, "no element")


def test_a_tkeep_that_splits_an_element_is_found() -> None:
    codes = np.arange(8).reshape(2, 4)
    spec = LookupSpec(input_bits=9, output_bits=9)
    vectors = UnitVectors(spec, {"table": np.arange(512)[None]}, (codes,), codes, None, "n", "r", "layer", (0, 1))
    expected = Expected(beats_of(9, 2, [codes]), len(codes))
    packed = expected.beats.packed()
    assert compare(vectors, 9, expected, Played(np.arange(4), np.arange(4), packed), [], 9)[0] == 0
    packed[2, 4] &= 0b1110  # the low byte of lane 0 is no longer kept
    count, first = compare(vectors, 9, expected, Played(np.arange(4), np.arange(4), packed), [], 9)
    assert count == 1
    assert first is not None
    assert first.got == "a tkeep that splits an element"
    assert first.cycle == 2


def test_beats_that_do_not_come_and_beats_too_many_are_found(layer: UnitVectors) -> None:
    count, first = wrong(layer, count=16)
    assert count == 3  # of the last row
    assert (first.image, first.row, first.element, first.got, first.cycle) == (9, 2, 2, "nothing", 115)
    count, first = wrong(layer, count=0)
    assert (count, first.got, first.cycle) == (30, "nothing", 5000)
    count, first = wrong(layer, count=20)
    assert (count, first.expected, first.got, first.cycle) == (2, "no further beat", "2 more", 118)


def test_a_beat_that_changes_before_it_is_taken_is_found(layer: UnitVectors) -> None:
    count, first = wrong(layer, unstable=[103])
    assert count == 1
    assert (first.row, first.expected, first.cycle) == (1, "a beat that stays until it is taken", 103)


def test_structures_are_packed_lowest_member_first() -> None:
    element = data.StructLayout({"code": 3, "values": data.ArrayLayout(signed(5), 2)})
    code, values = np.array([[5, 2]]), np.array([[[-1, 3], [-16, 15]]])
    beats = beats_of(element, 1, [code, values])
    expected = [5 | 0b11111 << 3 | 3 << 8, 2 | 0b10000 << 3 | 15 << 8]
    assert [int.from_bytes(beat.tobytes(), "little") for beat in beats.data] == expected
    assert beats.last.tolist() == [False, True]
    assert element_text(element, beats.data[1, 0]) == "{2, -16, 15}"


def test_output_padding_repeats_the_sign() -> None:
    beats = beats_of(signed(11), 1, [np.array([[-2, 5]])])
    assert beats.data.reshape(2, 2).tolist() == [[0xFE, 0xFF], [5, 0]]
    assert element_text(signed(11), beats.data[0, 0]) == "-2"


def test_input_padding_and_empty_lanes_are_random() -> None:
    dice = np.random.default_rng(1)
    rows = np.full((400, 3), 5)
    beats = beats_of(3, 2, [rows], padding=dice)
    assert (beats.data[beats.keep] & 7 == 5).all()
    assert len(np.unique(beats.data[beats.keep])) == 32
    assert len(np.unique(beats.data[~beats.keep])) > 150


def test_writes_have_their_address_in_the_low_bytes() -> None:
    words = words_of([(0x3, 0x1FF), (0x2AB, -1)], 10, 9)
    assert words.tolist() == [[0x03, 0x00, 0xFF, 0x01], [0xAB, 0x02, 0xFF, 0x01]]
