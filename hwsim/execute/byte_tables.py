# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""Tables of bytes looked up 64 at a time, where the processor permutes bytes (AVX-512 VBMI), else one by one.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (VPERMB, VPSADBW).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# Bytes a vector, and entries of a table that one permutation holds.
WIDTH = 64

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES, _QUADS = ir.VectorType(ir.IntType(8), WIDTH), ir.VectorType(_I64, 8)


def _declared(builder, name, result, arguments):
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _vector(builder, base, at):
    pointer = cgutils.pointer_add(builder, base, at, _BYTES.as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def _permute(typingctx, codes, codes_at, table, table_at, out, out_at):
    """``out[out_at + i] = table[table_at + codes[codes_at + i]]`` for 64 codes below 64."""

    def codegen(context, builder, sig, values):
        data = [context.make_array(sig.args[i])(context, builder, values[i]).data for i in (0, 2, 4)]
        permute = _declared(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES, [_BYTES, _BYTES])
        entries, index = _vector(builder, data[1], values[3]), _vector(builder, data[0], values[1])
        pointer = cgutils.pointer_add(builder, data[2], values[5], _BYTES.as_pointer())
        builder.store(builder.call(permute, [entries, index]), pointer, align=1)
        return context.get_dummy_value()

    return types.void(codes, types.intp, table, types.intp, out, types.intp), codegen


@intrinsic
def _sum_of_first(typingctx, values, at, count):
    """Sum of the first `count`, at most 64, of 64 bytes."""

    def codegen(context, builder, sig, arguments):
        data = context.make_array(sig.args[0])(context, builder, arguments[0]).data
        lanes = ir.Constant(ir.VectorType(_I32, WIDTH), list(range(WIDTH)))
        limit = builder.trunc(arguments[2], _I32)
        first = builder.insert_element(ir.Constant(lanes.type, ir.Undefined), limit, ir.Constant(_I32, 0))
        limits = builder.shuffle_vector(
            first, ir.Constant(lanes.type, ir.Undefined), ir.Constant(lanes.type, [0] * WIDTH)
        )
        zero = ir.Constant(_BYTES, None)
        kept = builder.select(builder.icmp_signed("<", lanes, limits), _vector(builder, data, arguments[1]), zero)
        sums = _declared(builder, "llvm.x86.avx512.psad.bw.512", _QUADS, [_BYTES, _BYTES])
        total = _declared(builder, "llvm.vector.reduce.add.v8i64", _I64, [_QUADS])
        return builder.call(total, [builder.call(sums, [kept, zero])])

    return types.int64(values, types.intp, types.intp), codegen


def decode(permutes, codes, digits, planes, stride):
    """``planes[plane * stride + i] = digits[plane, codes[i]]``.

    Parameters
    ----------
    permutes : int known when it is compiled
        Whether the processor permutes bytes.
    codes : flat array of uint8
    digits : array [planes, entries], padded to 64 entries or more
    planes : flat array of the type of the digits
    stride : int
        Entries from plane to plane.
    """
    raise NotImplementedError("for compiled kernels only")


@overload(decode, prefer_literal=True)
def _compiled_decode(permutes, codes, digits, planes, stride):
    def one_by_one(permutes, codes, digits, planes, stride):
        for plane in range(digits.shape[0]):
            for index in range(codes.size):
                planes[plane * stride + index] = digits[plane, codes[index]]

    def by_permutation(permutes, codes, digits, planes, stride):
        entries = digits.shape[1]
        whole = codes.size // WIDTH * WIDTH if entries == WIDTH else 0
        for plane in range(digits.shape[0]):
            for index in range(0, whole, WIDTH):
                _permute(codes, index, digits, plane * entries, planes, plane * stride + index)
            for index in range(whole, codes.size):
                planes[plane * stride + index] = digits[plane, codes[index]]

    all_bytes = codes.dtype == digits.dtype == types.uint8
    return by_permutation if permutes.literal_value and all_bytes else one_by_one


def sum_bytes(permutes, values, at, count):
    """Sum of `count` values of a flat array; of bytes, up to 63 behind them are read."""
    raise NotImplementedError("for compiled kernels only")


@overload(sum_bytes, prefer_literal=True)
def _compiled_sum_bytes(permutes, values, at, count):
    def one_by_one(permutes, values, at, count):
        total = 0
        for index in range(at, at + count):
            total += values[index]
        return total

    def by_vectors(permutes, values, at, count):
        total = 0
        for index in range(0, count, WIDTH):
            total += _sum_of_first(values, at + index, count - index)
        return total

    return by_vectors if permutes.literal_value and values.dtype == types.uint8 else one_by_one
