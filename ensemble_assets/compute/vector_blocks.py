"""Three blocks of vector code for the sparse head, as numba functions: ROWS by COLUMNS sums kept in registers.

numba and numpy do not offer the CPU's 8-bit dot-product instruction (VNNI), so these few lines are written in LLVM's
language, with llvmlite. Arguments are addresses, strides in bytes and counts, all integers; nothing is checked. What
the blocks are for is ``screen_kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ensemble_assets.compute.host_vectors import dot_product_lanes

LANES = dot_product_lanes() or 8
"""32-bit numbers in a vector register of this CPU."""

ROWS, COLUMNS = (6, 4) if LANES == 16 else (6, 2)
"""Scalars by vectors whose sums stay in registers: 24 of 32, or 12 of 16."""

GROUP = LANES * COLUMNS
"""Columns of a block."""

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code without the interpreter's lock, made at the first call."""
    return cast("F", numba.njit(nogil=True, error_model="numpy")(function))


def _inlined(function: Callable[..., Any]) -> Callable[..., None]:
    """Code for a call, given as LLVM builder calls; its first parameter, the typing context, is not the caller's."""
    return cast("Callable[..., None]", intrinsic(function))


def _loop(builder: Any, rows: list[Any], columns: Any, steps: Any, add: Any) -> list[list[Any]]:
    """Sums of products over ``steps``: each takes one scalar of every row and COLUMNS vectors."""
    index, vector = ir.IntType(64), ir.VectorType(rows[0].type.pointee, LANES)
    zero = ir.Constant(vector, [0] * LANES)
    entry, body, done = builder.block, builder.append_basic_block("body"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(index)
    step.add_incoming(index(0), entry)
    sums = [[builder.phi(vector) for _ in range(COLUMNS)] for _ in range(ROWS)]
    for held in (held for row in sums for held in row):
        held.add_incoming(zero, entry)
    at = builder.add(columns, builder.mul(step, index(COLUMNS * LANES * 4)))
    added = _step(builder, sums, [builder.gep(row, [step]) for row in rows], at, add)
    following = builder.add(step, index(1))
    step.add_incoming(following, builder.block)
    for old, new in zip((h for r in sums for h in r), (h for r in added for h in r), strict=True):
        old.add_incoming(new, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, done)
    builder.position_at_end(done)
    return added


def _step(builder: Any, sums: list[list[Any]], rows: list[Any], columns: Any, add: Any) -> list[list[Any]]:
    vector = sums[0][0].type
    base = builder.inttoptr(columns, vector.as_pointer())
    loaded = [builder.load(builder.gep(base, [ir.IntType(64)(at)]), align=4) for at in range(COLUMNS)]
    added = []
    for row, scalar in zip(sums, rows, strict=True):
        spread = _spread(builder, builder.load(scalar, align=1), vector)
        added.append([add(builder, held, spread, column) for held, column in zip(row, loaded, strict=True)])
    return added


def _rows(builder: Any, element: Any, start: Any, stride: Any) -> list[Any]:
    """Pointers to the rows' first elements."""
    places = [builder.add(start, builder.mul(stride, ir.IntType(64)(row))) for row in range(ROWS)]
    return [builder.inttoptr(place, element.as_pointer()) for place in places]


def _spread(builder: Any, scalar: Any, vector: Any) -> Any:
    undefined, word = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    single = builder.insert_element(undefined, scalar, word(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(word, LANES), [0] * LANES))


def _multiply_add(builder: Any, total: Any, left: Any, right: Any) -> Any:
    return _called(builder, f"llvm.fma.v{LANES}f32", left, right, total)


def _unsigned_rows(builder: Any, total: Any, row: Any, column: Any) -> Any:
    """Adds to every 32-bit lane the products of its four unsigned and four signed bytes, without saturation."""
    return _called(builder, f"llvm.x86.avx512.vpdpbusd.{LANES * 32}", total, row, column)


def _unsigned_columns(builder: Any, total: Any, row: Any, column: Any) -> Any:
    return _unsigned_rows(builder, total, column, row)


def _called(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@_inlined
def rotate_block(_: Any, states: Any, stride: Any, basis: Any, steps: Any, out: Any, out_stride: Any) -> Any:
    """``out[row, column]``: float32 products of ROWS states with COLUMNS vectors of the basis."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        states, stride, basis, steps, out, out_stride = arguments
        sums = _loop(builder, _rows(builder, ir.FloatType(), states, stride), basis, steps, _multiply_add)
        _store(builder, sums, out, out_stride)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@_inlined
def largest_block(  # noqa: PLR0917  # numba's intrinsics take nothing by name
    _: Any, states: Any, stride: Any, tails: Any, terms: Any, steps: Any, term_tails: Any, largest: Any
) -> Any:
    """``largest[column]``: raised to the largest 8-bit product of ROWS states with each of GROUP terms, and tails."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        states, stride, tails, terms, steps, term_tails, largest = arguments
        word = ir.IntType(32)
        sums = _loop(builder, _rows(builder, word, states, stride), terms, steps, _unsigned_rows)
        sums = _step(builder, sums, _rows(builder, word, tails, ir.IntType(64)(4)), term_tails, _unsigned_rows)
        base = builder.inttoptr(largest, sums[0][0].type.as_pointer())
        for column in range(COLUMNS):
            place = builder.gep(base, [ir.IntType(64)(column)])
            best = builder.load(place, align=4)
            for row in sums:
                best = builder.select(builder.icmp_signed(">", row[column], best), row[column], best)
            builder.store(best, place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@_inlined
def terms_block(_: Any, places: Any, states: Any, steps: Any, out: Any, out_stride: Any) -> Any:
    """``out[row, column]``: 8-bit products of ROWS terms, wherever they lie, with COLUMNS vectors of states."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        places, states, steps, out, out_stride = arguments
        word, pointer = ir.IntType(32), builder.inttoptr(places, ir.IntType(64).as_pointer())
        found = [builder.load(builder.gep(pointer, [ir.IntType(64)(row)])) for row in range(ROWS)]
        rows = [builder.inttoptr(place, word.as_pointer()) for place in found]
        _store(builder, _loop(builder, rows, states, steps, _unsigned_columns), out, out_stride)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _store(builder: Any, sums: list[list[Any]], out: Any, stride: Any) -> None:
    for row, held in enumerate(sums):
        base = builder.inttoptr(builder.add(out, builder.mul(stride, ir.IntType(64)(row))), held[0].type.as_pointer())
        for column, vector in enumerate(held):
            builder.store(vector, builder.gep(base, [ir.IntType(64)(column)]), align=4)
