"""Lookup in Amaranth's simulator."""

import itertools
import random

import numpy as np
import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_bench import Phase, run

from golden.errors import HwsimError
from golden.lookup import LookupSpec
from rtl.lookup import Lookup


def table_of(spec, seed):
    dice = np.random.default_rng(seed)
    return {"table": dice.integers(0, 1 << spec.output_bits, (spec.channels, 1 << spec.input_bits))}


def looked_up(constants, rows):
    """What a list of lists would do."""
    table = constants["table"].tolist()
    return [[table[place % len(table)][code] for place, code in enumerate(row)] for row in rows]


def rows_of(spec, seed, count=6):
    dice = random.Random(seed)
    length = (lambda: spec.channels) if spec.channels > 1 else (lambda: dice.randrange(1, 9))
    return [[dice.randrange(1 << spec.input_bits) for _ in range(length())] for _ in range(count)]


@settings(max_examples=12)
@given(
    input_bits=st.integers(1, 8),
    output_bits=st.integers(1, 9),
    channels=st.sampled_from([1, 1, 2, 3, 5]),
    lanes=st.integers(1, 4),
    baked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_specs_with_stalls(input_bits, output_bits, channels, lanes, baked, seed):
    spec = LookupSpec(input_bits=input_bits, output_bits=output_bits, channels=channels)
    constants = table_of(spec, seed)
    unit = Lookup(spec, lanes=lanes, constants=constants if baked else None)
    rows = rows_of(spec, seed)
    writes = () if baked else unit.writes(spec, constants)
    (results,) = run(unit, [Phase(rows, writes)], stall_in=0.3, stall_out=0.3, seed=seed)
    assert [row.elements for row in results] == looked_up(constants, rows)


def test_smallest_and_largest_codes_and_rows_of_one_element():
    spec = LookupSpec(input_bits=8, output_bits=8)
    constants = {"table": np.arange(255, -1, -1)[None]}
    rows = [[0], [255], [0, 255, 0, 255, 255], [128]]
    (results,) = run(Lookup(spec, lanes=2, constants=constants), [Phase(rows)])
    assert [row.elements for row in results] == [[255], [0], [255, 0, 255, 0, 0], [127]]


def test_tables_are_reloaded_between_rows():
    spec = LookupSpec(input_bits=4, output_bits=6)
    unit = Lookup(spec, lanes=3)
    tables = [table_of(spec, seed) for seed in range(3)]
    rows = rows_of(spec, 5)
    results = run(unit, [Phase(rows, unit.writes(spec, table)) for table in tables], stall_out=0.3)
    for table, found in zip(tables, results, strict=True):
        assert [row.elements for row in found] == looked_up(table, rows)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_cycles_per_row_and_latency(lanes):
    spec = LookupSpec(input_bits=4, output_bits=4)
    unit = Lookup(spec, lanes=lanes, constants=table_of(spec, 0))
    lengths = [7, 1, 12, 4, 4]
    (results,) = run(unit, [Phase([[1] * length for length in lengths])])
    assert [row.out_cycles[0] - row.first_in for row in results] == [unit.latency] * len(lengths)
    # Rows follow each other without a gap, on both sides.
    ends = [row.out_cycles[-1] for row in results]
    assert [later - earlier for earlier, later in itertools.pairwise(ends)] == [
        unit.cycles_per_row(length) for length in lengths[1:]
    ]
    assert [unit.cycles_per_row(length) for length in lengths] == [-(-length // lanes) for length in lengths]


def test_a_row_past_the_last_channel_starts_again():
    spec = LookupSpec(input_bits=3, output_bits=5, channels=3)
    constants = table_of(spec, 1)
    (results,) = run(Lookup(spec, lanes=1, constants=constants), [Phase([[4, 5, 6, 7, 0, 1, 2]])])
    assert results[0].elements == looked_up(constants, [[4, 5, 6, 7, 0, 1, 2]])[0]
    # With two lanes it starts again after two beats, and there is no fourth channel.
    (results,) = run(Lookup(spec, lanes=2, constants=constants), [Phase([[4, 5, 6, 7, 0, 1]])])
    table = constants["table"].tolist()
    assert results[0].elements == [table[0][4], table[1][5], table[2][6], 0, table[0][0], table[1][1]]


def test_a_write_takes_the_cycle_and_counts_for_the_beats_after_it():
    spec = LookupSpec(input_bits=2, output_bits=8)
    unit = Lookup(spec)
    seen = []

    async def bench(ctx):
        ctx.set(unit.o.ready, 1)
        ctx.set(unit.i.valid, 1)
        ctx.set(unit.i.payload, {"data": [1], "keep": 1, "last": 1})
        for cycle in range(12):
            # A write in every third cycle changes the word that every beat reads.
            ctx.set(unit.w.valid, cycle % 3 == 0)
            ctx.set(unit.w.payload, {"address": 1, "data": 100 + cycle})
            _, _, taken, valid, payload = await ctx.tick().sample(unit.i.ready, unit.o.valid, unit.o.payload)
            assert taken == (cycle % 3 != 0)
            if valid:
                seen.append(payload["data"][0])

    simulator = Simulator(unit)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == [100, 100, 103, 103, 106, 106][: len(seen)]
    assert len(seen) == 6


def test_one_wrong_word_changes_just_its_elements():
    spec = LookupSpec(input_bits=5, output_bits=8)
    constants = table_of(spec, 3)
    unit = Lookup(spec, lanes=2)
    writes = unit.writes(spec, constants)
    writes[17] = (17, writes[17][1] ^ 1)
    rows = rows_of(spec, 4, count=30)
    (results,) = run(unit, [Phase(rows, writes)])
    wrong = [
        row[place]
        for row, expected, result in zip(rows, looked_up(constants, rows), results, strict=True)
        for place in range(len(row))
        if result.elements[place] != expected[place]
    ]
    assert wrong == [17] * sum(row.count(17) for row in rows) != []


def test_layers_that_one_unit_cannot_serve_are_refused():
    layers = [(LookupSpec(input_bits=8, output_bits=bits), {}) for bits in (4, 8)]
    with pytest.raises(HwsimError, match="output_bits 4 and 8"):
        Lookup.covering(layers)
    assert Lookup.covering(layers[:1] * 2, lanes=4).lanes == 4
