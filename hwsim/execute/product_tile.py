# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""The inner loop of an integer matrix product, as LLVM instructions inside a compiled kernel.

numba cannot name the processor's dot-product instructions, and turns a sum of int32 products into
one of int64; so the loop over the inner axis, which holds a tile of sums in vector registers, is
built here. The tile is requantized in the registers and leaves them as codes.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (VPDPBUSD, VPDPWSSD,
VPMADDWD): the first two wrap, VPDPBUSDS and VPMADDUBSW, which saturate, are not used.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Adding it to a double below 2^51 leaves the nearest integer, ties to even, in the low bits of the mantissa.
ROUNDER = float(3 << 51)

_I8, _I16, _I32, _I64, _F64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.DoubleType()


def _intrinsic_call(builder: Any, name: str, result: Any, arguments: Any) -> Any:
    declared = builder.module.globals.get(name)
    if declared is None:
        declared = ir.Function(builder.module, ir.FunctionType(result, [value.type for value in arguments]), name)
    return builder.call(declared, arguments)


class _Emitter:
    """Shorthands for vectors of `lanes` 32-bit sums."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.sums = ir.VectorType(_I32, lanes)
        self.doubles = ir.VectorType(_F64, lanes)

    def broadcast(self, scalar: Any) -> Any:
        kind = ir.VectorType(scalar.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(
            first,
            ir.Constant(kind, ir.Undefined),
            ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes),
        )

    def load(self, kind: Any, base: Any, offset: Any) -> Any:
        pointer = cgutils.pointer_add(self.builder, base, offset, kind.as_pointer())
        return self.builder.load(pointer, align=1)

    def dot(self, dot4: bool, native: bool, total: Any, a: Any, b: Any) -> Any:
        """``total`` plus the dot products of the 4 bytes, or 2 words, in every lane."""
        bits = 32 * self.lanes
        if dot4 or native:
            name = "vpdpbusd" if dot4 else "vpdpwssd"
            return _intrinsic_call(self.builder, f"llvm.x86.avx512.{name}.{bits}", self.sums, [total, a, b])
        words = ir.VectorType(_I16, 2 * self.lanes)
        name = "llvm.x86.avx512.pmaddw.d.512" if bits == 512 else "llvm.x86.avx2.pmadd.wd"
        pairs = [self.builder.bitcast(value, words) for value in (a, b)]
        return self.builder.add(total, _intrinsic_call(self.builder, name, self.sums, pairs))

    def codes(self, sums: Any, scale: Any, addend: Any, highest: Any, kind: Any) -> Any:
        """Sums times scale plus addend, rounded half to even, from 0 to highest."""
        builder = self.builder
        exact = builder.sitofp(sums, self.doubles)
        # One rounding of the exact product and sum, at the weight of 1: the requantization of golden.requantize.
        rounded = _intrinsic_call(
            builder, f"llvm.fma.v{self.lanes}f64", self.doubles, [exact, scale, self.broadcast(addend)]
        )
        lowest = self.broadcast(ir.Constant(_F64, ROUNDER))
        rounded = builder.select(builder.fcmp_ordered(">", rounded, lowest), rounded, lowest)
        top = self.broadcast(builder.fadd(highest, ir.Constant(_F64, ROUNDER)))
        rounded = builder.select(builder.fcmp_ordered("<", rounded, top), rounded, top)
        return builder.trunc(builder.bitcast(rounded, ir.VectorType(_I64, self.lanes)), ir.VectorType(kind, self.lanes))


@intrinsic(prefer_literal=True)
def product_tile(
    typingctx,
    lanes,
    native,
    rows,
    vectors,
    masked,
    a,
    a_at,
    a_stride,
    a_plane,
    planes,
    b,
    b_at,
    b_stride,
    groups,
    start,
    start_at,
    row_start,
    row_at,
    spare,
    scale,
    scale_at,
    addend,
    highest,
    out,
    out_at,
    out_stride,
    valid,
):
    """A tile of codes: `rows` times `vectors` x `lanes` columns.

    Parameters
    ----------
    lanes, native, rows, vectors : literal int
        Columns a vector (8 or 16); whether word products are accumulated in one instruction; size of the tile.
    masked : literal int
        Whether only `valid` columns may change. Of the others the bytes are read and written back, so they must be
        in the buffer, and no other thread's.
    a : array of uint8 or int16
        Left operand; bytes ``[row, 4 * group + i]`` or words ``[row, 2 * group + i]``.
    a_at, a_stride, a_plane : int
        Bytes to the first row, from row to row, from plane to plane.
    planes : int
        The left operand is ``sum_p plane_p << 8 * (planes - 1 - p)``.
    b : array of int8 (bytes) or int16 (words)
        Packed right operand ``[vector, group, lane, i]``; its type selects the instruction.
    b_at, b_stride : int
        Bytes to the first vector, from vector to vector.
    groups : int
        Steps of the inner axis.
    start, start_at
        int32 added to every sum of a column.
    row_start, row_at
        int32 added to every sum of a row.
    spare : int
        32 less the accumulator's width: sums wrap there.
    scale, scale_at
        float64 of every column, multiplier / 2^shift.
    addend, highest : float
        Zero point plus `ROUNDER`; largest code.
    out, out_at, out_stride
        Codes of 8 or 16 bits; bytes to the first, from row to row.
    """
    if not all(isinstance(value, types.IntegerLiteral) for value in (lanes, native, rows, vectors, masked)):
        return None
    shape = lanes.literal_value, bool(native.literal_value), rows.literal_value, vectors.literal_value
    dot4 = b.dtype == types.int8
    signature = types.void(
        lanes, native, rows, vectors, masked, a, types.intp, types.intp, types.intp, types.intp, b, types.intp,
        types.intp, types.intp, start, types.intp, row_start, types.intp, types.int32, scale, types.intp, types.float64,
        types.float64, out, types.intp, types.intp, types.int32,
    )  # fmt: skip

    def codegen(context, builder, sig, values):
        (
            _, _, _, _, _, a_, a_at_, a_stride_, a_plane_, planes_, b_, b_at_, b_stride_, groups_, start_, start_at_,
            row_start_, row_at_, spare_, scale_, scale_at_, addend_, highest_, out_, out_at_, out_stride_, valid_,
        ) = values  # fmt: skip

        def data(kind, value):
            return context.make_array(kind)(context, builder, value).data

        _emit(
            builder,
            shape,
            dot4,
            (data(sig.args[5], a_), a_at_, a_stride_, a_plane_, planes_),
            (data(sig.args[10], b_), b_at_, b_stride_, groups_),
            (data(sig.args[14], start_), start_at_),
            (data(sig.args[16], row_start_), row_at_),
            (spare_, data(sig.args[19], scale_), scale_at_, addend_, highest_),
            (data(sig.args[23], out_), out_at_, out_stride_, ir.IntType(sig.args[23].dtype.bitwidth)),
            valid_ if masked.literal_value else None,
        )
        return context.get_dummy_value()

    return signature, codegen


def _emit(builder, shape, dot4, left, right, start, row_start, requantize, result, valid):
    lanes, native, rows, vectors = shape
    emit = _Emitter(builder, lanes)
    a, a_at, a_stride, a_plane, planes = left
    b, b_at, b_stride, groups = right
    zero, one, step = ir.Constant(_I64, 0), ir.Constant(_I64, 1), ir.Constant(_I64, 4 * lanes)
    row_offsets = [builder.add(a_at, builder.mul(a_stride, ir.Constant(_I64, row))) for row in range(rows)]
    b_offsets = [builder.add(b_at, builder.mul(b_stride, ir.Constant(_I64, vector))) for vector in range(vectors)]
    entry = builder.block
    plane_block, loop, plane_end, more, done = (
        builder.append_basic_block(name) for name in ("plane", "inner", "plane_end", "more", "done")
    )
    builder.branch(plane_block)

    builder.position_at_end(plane_block)
    plane = builder.phi(_I64)
    plane.add_incoming(zero, entry)
    carried = []
    for _ in range(rows * vectors):
        total = builder.phi(emit.sums)
        total.add_incoming(ir.Constant(emit.sums, None), entry)
        carried.append(total)
    plane_at = builder.mul(plane, a_plane)
    starts = [builder.add(offset, plane_at) for offset in row_offsets]
    builder.branch(loop)

    builder.position_at_end(loop)
    group = builder.phi(_I64)
    group.add_incoming(zero, plane_block)
    totals = []
    for total in carried:
        running = builder.phi(emit.sums)
        running.add_incoming(total, plane_block)
        totals.append(running)
    b_step = builder.mul(group, step)
    a_step = builder.mul(group, ir.Constant(_I64, 4))
    weights = [emit.load(emit.sums, b, builder.add(offset, b_step)) for offset in b_offsets]
    sums = []
    for row in range(rows):
        codes = emit.broadcast(emit.load(_I32, a, builder.add(starts[row], a_step)))
        running = totals[row * vectors : (row + 1) * vectors]
        sums += [emit.dot(dot4, native, total, codes, b_part) for total, b_part in zip(running, weights, strict=True)]
    following = builder.add(group, one)
    group.add_incoming(following, loop)
    for phi, total in zip(totals, sums, strict=True):
        phi.add_incoming(total, loop)
    builder.cbranch(builder.icmp_signed("<", following, groups), loop, plane_end)

    builder.position_at_end(plane_end)
    next_plane = builder.add(plane, one)
    builder.cbranch(builder.icmp_signed("<", next_plane, planes), more, done)
    builder.position_at_end(more)
    eight = emit.broadcast(ir.Constant(_I32, 8))
    plane.add_incoming(next_plane, more)
    for total, ended in zip(carried, sums, strict=True):
        total.add_incoming(builder.shl(ended, eight), more)
    builder.branch(plane_block)

    builder.position_at_end(done)
    _store(emit, shape, sums, start, row_start, requantize, result, valid)


def _store(emit, shape, sums, start, row_start, requantize, result, valid):
    builder = emit.builder
    lanes, _, rows, vectors = shape
    spare, scale, scale_at, addend, highest = requantize
    out, out_at, out_stride, kind = result
    four, eight = ir.Constant(_I64, 4), ir.Constant(_I64, 8)
    width = ir.Constant(_I64, kind.width // 8)
    spare = emit.broadcast(spare)
    for vector in range(vectors):
        first = ir.Constant(_I64, vector * lanes)
        begin = emit.load(emit.sums, start[0], builder.mul(builder.add(start[1], first), four))
        factor = emit.load(emit.doubles, scale, builder.mul(builder.add(scale_at, first), eight))
        if valid is not None:
            columns = ir.Constant(emit.sums, [vector * lanes + lane for lane in range(lanes)])
            inside = builder.icmp_signed("<", columns, emit.broadcast(valid))
        for row in range(rows):
            total = builder.add(sums[row * vectors + vector], begin)
            at = builder.mul(builder.add(row_start[1], ir.Constant(_I64, row)), four)
            total = builder.add(total, emit.broadcast(emit.load(_I32, row_start[0], at)))
            total = builder.ashr(builder.shl(total, spare), spare)
            codes = emit.codes(total, factor, addend, highest, kind)
            at = builder.add(out_at, builder.mul(out_stride, ir.Constant(_I64, row)))
            at = builder.add(at, builder.mul(first, width))
            pointer = cgutils.pointer_add(builder, out, at, codes.type.as_pointer())
            if valid is not None:
                codes = builder.select(inside, codes, builder.load(pointer, align=1))
            builder.store(codes, pointer, align=1)
