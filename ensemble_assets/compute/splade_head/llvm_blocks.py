"""Three blocks of vector code for the sparse head, as numba functions: ROWS by COLUMNS sums kept in registers.

numba and numpy do not offer the CPU's 8-bit dot-product instruction (VNNI), so these few lines are written in LLVM's
language, with llvmlite. Arguments are addresses, strides in bytes and counts, all integers; nothing is checked. What
the blocks are for is ``screen_kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ensemble_assets.compute.splade_head.cpu_vectors import dot_product_lanes

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


_Sums = list[list[Any]]
"""ROWS by COLUMNS vectors."""


def _zeros(element: Any) -> _Sums:
    zero = ir.Constant(ir.VectorType(element, LANES), [0] * LANES)
    return [[zero] * COLUMNS for _ in range(ROWS)]


def _joined(builder: Any, sums: _Sums) -> _Sums:
    """Places for sums that come from several blocks (``_come_from``)."""
    return [[builder.phi(held.type) for held in row] for row in sums]


def _come_from(joined: _Sums, sums: _Sums, block: Any) -> None:
    for row, own in zip(joined, sums, strict=True):
        for value, held in zip(row, own, strict=True):
            value.add_incoming(held, block)


def _loop(builder: Any, rows: list[Any], columns: Any, span: tuple[Any, Any], sums: _Sums, add: Any) -> _Sums:
    """``sums`` and the products of the steps of ``span``, at least one: a scalar of every row and COLUMNS vectors."""
    index, (first, end) = ir.IntType(64), span
    entry, body, done = builder.block, builder.append_basic_block("body"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(index)
    step.add_incoming(first, entry)
    held = _joined(builder, sums)
    _come_from(held, sums, entry)
    at = builder.add(columns, builder.mul(step, index(COLUMNS * LANES * 4)))
    added = _step(builder, held, [builder.gep(row, [step]) for row in rows], at, add)
    following = builder.add(step, index(1))
    step.add_incoming(following, builder.block)
    _come_from(held, added, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), body, done)
    builder.position_at_end(done)
    return added


def _step(builder: Any, sums: _Sums, rows: list[Any], columns: Any, add: Any) -> _Sums:
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
        rows, zeros = _rows(builder, ir.FloatType(), states, stride), _zeros(ir.FloatType())
        sums = _loop(builder, rows, basis, (ir.IntType(64)(0), steps), zeros, _multiply_add)
        _store(builder, sums, out, out_stride)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@_inlined
def largest_block(  # noqa: PLR0913, PLR0917  # numba's intrinsics take nothing by name
    _: Any,
    states: Any,
    stride: Any,
    tails: Any,
    terms: Any,
    plan: Any,
    checks: Any,
    term_tails: Any,
    limits: Any,
    largest: Any,
) -> Any:
    """``largest[column]``: raised to the largest 8-bit product of ROWS states with each of GROUP terms.

    Left alone if that is in vain: ``plan[stage]`` says up to which step to go and where the states' tail of that stage
    lies; after each of the first ``checks`` stages, the largest product so far and that of the tails must be above the
    stage's limit for at least one term.
    """

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        states, stride, tails, terms, plan, checks, term_tails, limits, largest = arguments
        index, word = ir.IntType(64), ir.IntType(32)
        entry, begin, check, whole, end = (
            builder.block,
            *map(builder.append_basic_block, ("begin", "check", "whole", "end")),
        )
        rows, zeros = _rows(builder, word, states, stride), _zeros(word)
        builder.branch(begin)

        builder.position_at_end(begin)
        stage, first, held = builder.phi(index), builder.phi(index), _joined(builder, zeros)
        stage.add_incoming(index(0), entry)
        first.add_incoming(index(0), entry)
        _come_from(held, zeros, entry)
        entered = builder.add(plan, builder.mul(stage, index(16)))
        last = _number(builder, index, entered)
        sums = _loop(builder, rows, terms, (first, last), held, _unsigned_rows)
        builder.cbranch(builder.icmp_signed("<", stage, checks), check, whole)

        builder.position_at_end(check)
        own = _number(builder, word, builder.add(tails, _number(builder, index, builder.add(entered, index(8)))))
        tail, moved = _spread(builder, own, zeros[0][0].type), builder.mul(stage, index(GROUP * 4))
        theirs, least = (_vectors(builder, builder.add(start, moved)) for start in (term_tails, limits))
        above = []
        for column in range(COLUMNS):
            best = _highest(builder, [row[column] for row in sums])
            above.append(builder.icmp_signed(">", _unsigned_rows(builder, best, tail, theirs[column]), least[column]))
        some = builder.bitcast(reduce(builder.or_, above), ir.IntType(LANES))
        stage.add_incoming(builder.add(stage, index(1)), builder.block)
        first.add_incoming(last, builder.block)
        _come_from(held, sums, builder.block)
        builder.cbranch(builder.icmp_unsigned("!=", some, ir.IntType(LANES)(0)), begin, end)

        builder.position_at_end(whole)
        for column, before in enumerate(_vectors(builder, largest)):
            best = _highest(builder, [before, *(row[column] for row in sums)])
            place = builder.add(largest, index(column * LANES * 4))
            builder.store(best, builder.inttoptr(place, best.type.as_pointer()), align=4)
        builder.branch(end)

        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), generate


def _number(builder: Any, kind: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _vectors(builder: Any, address: Any) -> list[Any]:
    """COLUMNS vectors of 32-bit numbers, one after another."""
    base = builder.inttoptr(address, ir.VectorType(ir.IntType(32), LANES).as_pointer())
    return [builder.load(builder.gep(base, [ir.IntType(64)(at)]), align=4) for at in range(COLUMNS)]


def _highest(builder: Any, vectors: list[Any]) -> Any:
    return reduce(lambda a, b: builder.select(builder.icmp_signed(">", a, b), a, b), vectors)


@_inlined
def terms_block(_: Any, places: Any, states: Any, steps: Any, out: Any, out_stride: Any) -> Any:
    """``out[row, column]``: 8-bit products of ROWS terms, wherever they lie, with COLUMNS vectors of states."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        places, states, steps, out, out_stride = arguments
        word, pointer = ir.IntType(32), builder.inttoptr(places, ir.IntType(64).as_pointer())
        found = [builder.load(builder.gep(pointer, [ir.IntType(64)(row)])) for row in range(ROWS)]
        rows = [builder.inttoptr(place, word.as_pointer()) for place in found]
        sums = _loop(builder, rows, states, (ir.IntType(64)(0), steps), _zeros(word), _unsigned_columns)
        _store(builder, sums, out, out_stride)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _store(builder: Any, sums: _Sums, out: Any, stride: Any) -> None:
    for row, held in enumerate(sums):
        base = builder.inttoptr(builder.add(out, builder.mul(stride, ir.IntType(64)(row))), held[0].type.as_pointer())
        for column, vector in enumerate(held):
            builder.store(vector, builder.gep(base, [ir.IntType(64)(column)]), align=4)
