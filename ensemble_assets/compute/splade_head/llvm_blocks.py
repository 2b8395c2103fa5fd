"""Three small matrix products in LLVM code, callable from numba: ROWS rows by COLUMNS registers of running sums.

The sums stay in the CPU's vector registers for a whole loop, where a matrix product of a library writes every sum to
memory. Neither numba nor numpy offers the 8-bit instructions that two of the products use. So their code is written as
LLVM instructions, with llvmlite.

All arguments of the three functions are 64-bit integers: addresses, strides in bytes, and counts. Nothing is checked.
``docs/sparse-head.md`` shows where each product is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.typing import BaseContext as TypingContext
from numba.extending import intrinsic

from ensemble_assets.compute.splade_head.cpu_vectors import VectorUnit, vector_unit

UNIT = vector_unit() or VectorUnit("avx_vnni", 8)
"""The instructions that the code is made of; without any, the ones that tests emulate."""

LANES = UNIT.lanes
"""32-bit numbers in a vector register of this CPU."""

ROWS, COLUMNS = (6, 4) if LANES == 16 else (6, 2)
"""Size of a block. Its sums take 24 of 32 registers, or 12 of 16; operands and addresses need the others."""

GROUP = LANES * COLUMNS
"""Numbers in a row of a block: terms that are screened together, or columns of a rotation."""

_INDEX, _WORD, _BYTES_OF_WORD = ir.IntType(64), ir.IntType(32), 4

Function = TypeVar("Function", bound=Callable[..., Any])
_Sums = list[list[ir.Value]]
"""ROWS lists of COLUMNS vector registers."""

_AddProduct = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]
"""Adds to a register of sums the product of a row's number, in every lane, and a register of columns."""


def compiled(function: Function, **options: Any) -> Function:
    """Make a function machine code at its first call. Only other such functions can call it.

    Functions that Python or C could call convert their arguments, which takes a quarter of the time to compile.
    """
    alone = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", numba.njit(nogil=True, error_model="numpy", **alone | options)(function))


def _inlined(function: Callable[..., Any]) -> Callable[..., None]:
    """Make a numba function of one that returns its signature and a generator of its code.

    The first parameter, numba's typing context, is not an argument of the call. The other parameters are the types of
    the call's arguments; the generator gets their values.
    """
    return cast("Callable[..., None]", intrinsic(function))


def _nothing_of(arguments: int) -> Any:
    """Signature of a function of so many integers that returns nothing."""
    return types.void(*[types.intp] * arguments)


# --- the three products ---


@_inlined
def rotate_block(  # numba's intrinsics take nothing by name
    _: TypingContext,
    states: types.Type,
    stride: types.Type,
    basis: types.Type,
    steps: types.Type,
    out: types.Type,
    out_stride: types.Type,
) -> Any:
    """Multiply ROWS states ``[ROWS, steps] float32`` by a block of the basis ``[steps, GROUP]`` into ``out``."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> Any:
        states, stride, basis, steps, out, out_stride = arguments
        rows, zeros = _row_pointers(builder, ir.FloatType(), states, stride), _zero_sums(ir.FloatType())
        sums = _loop(builder, rows, basis, (_INDEX(0), steps), zeros, _add_float_product)
        _store(builder, sums, out, out_stride)
        return context.get_dummy_value()

    return _nothing_of(6), generate


@_inlined
def largest_block(  # noqa: PLR0913, PLR0917  # numba's intrinsics take nothing by name
    _: TypingContext,
    states: types.Type,
    stride: types.Type,
    tails: types.Type,
    terms: types.Type,
    plan: types.Type,
    checks: types.Type,
    term_tails: types.Type,
    limits: types.Type,
    largest: types.Type,
) -> Any:
    """Raise ``largest[GROUP] int32`` to the 8-bit products of ROWS states with each of GROUP terms.

    The product is computed in stages. ``plan[stage]`` holds the step at which a stage ends and the offset of the
    states' tail norms in ``tails``. After each of the first ``checks`` stages, the largest product so far plus the
    product of the tails bounds what the whole product can be. If no term's bound is above its ``limits[stage]``, the
    block is given up and ``largest`` is not written.

    In C, with the vectors of a group as one value:

        sums = 0; stage = 0; first = 0
        begin:  sums += products of the steps first .. plan[stage].end
                if stage >= checks: goto whole
        check:  bound = max over rows(sums) + tails * term_tails[stage]
                first = plan[stage].end; stage += 1
                if any(bound > limits): goto begin else: goto end
        whole:  largest = max(largest, max over rows(sums))
        end:
    """

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> Any:
        states, stride, tails, terms, plan, checks, term_tails, limits, largest = arguments
        entry = builder.block
        begin, check, whole, end = map(builder.append_basic_block, ("begin", "check", "whole", "end"))
        rows, zeros = _row_pointers(builder, _WORD, states, stride), _zero_sums(_WORD)
        builder.branch(begin)

        builder.position_at_end(begin)
        stage, first, sums_before = builder.phi(_INDEX), builder.phi(_INDEX), _phi_sums(builder, zeros)
        stage.add_incoming(_INDEX(0), entry)
        first.add_incoming(_INDEX(0), entry)
        _add_incoming(sums_before, zeros, entry)
        plan_entry = builder.add(plan, builder.mul(stage, _INDEX(16)))  # two 64-bit numbers
        last = _load(builder, _INDEX, plan_entry)
        sums = _loop(builder, rows, terms, (first, last), sums_before, _add_row_unsigned)
        builder.cbranch(builder.icmp_signed("<", stage, checks), check, whole)

        builder.position_at_end(check)
        tail_address = builder.add(tails, _load(builder, _INDEX, builder.add(plan_entry, _INDEX(8))))
        state_tail = _broadcast(builder, _load(builder, _WORD, tail_address), zeros[0][0].type)
        of_stage = builder.mul(stage, _INDEX(GROUP * _BYTES_OF_WORD))
        tail_vectors, limit_vectors = (
            _load_vectors(builder, builder.add(table, of_stage)) for table in (term_tails, limits)
        )
        above = []
        for column in range(COLUMNS):
            best = _largest_lanes(builder, [row[column] for row in sums])
            bound = dot_product(builder, best, state_tail, tail_vectors[column])
            above.append(builder.icmp_signed(">", bound, limit_vectors[column]))
        any_above = builder.bitcast(reduce(builder.or_, above), ir.IntType(LANES))
        stage.add_incoming(builder.add(stage, _INDEX(1)), builder.block)
        first.add_incoming(last, builder.block)
        _add_incoming(sums_before, sums, builder.block)
        builder.cbranch(builder.icmp_unsigned("!=", any_above, ir.IntType(LANES)(0)), begin, end)

        builder.position_at_end(whole)
        for column, before in enumerate(_load_vectors(builder, largest)):
            best = _largest_lanes(builder, [before, *(row[column] for row in sums)])
            place = builder.add(largest, _INDEX(column * LANES * _BYTES_OF_WORD))
            builder.store(best, builder.inttoptr(place, best.type.as_pointer()), align=4)
        builder.branch(end)

        builder.position_at_end(end)
        return context.get_dummy_value()

    return _nothing_of(9), generate


@_inlined
def terms_block(
    _: TypingContext,
    places: types.Type,
    states: types.Type,
    steps: types.Type,
    out: types.Type,
    out_stride: types.Type,
) -> Any:
    """Multiply ROWS 8-bit terms, at the addresses ``places``, by GROUP tokens into ``out [ROWS, GROUP] int32``."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> Any:
        places, states, steps, out, out_stride = arguments
        pointer = builder.inttoptr(places, _INDEX.as_pointer())
        addresses = [builder.load(builder.gep(pointer, [_INDEX(row)])) for row in range(ROWS)]
        rows = [builder.inttoptr(address, _WORD.as_pointer()) for address in addresses]
        sums = _loop(builder, rows, states, (_INDEX(0), steps), _zero_sums(_WORD), _add_column_unsigned)
        _store(builder, sums, out, out_stride)
        return context.get_dummy_value()

    return _nothing_of(5), generate


# --- the loop that they share ---


def _loop(
    builder: ir.IRBuilder,
    rows: list[ir.Value],
    columns: ir.Value,
    span: tuple[ir.Value, ir.Value],
    sums: _Sums,
    add_product: _AddProduct,
) -> _Sums:
    """Add the products of the steps from ``span[0]`` to before ``span[1]`` to ``sums``; the body runs at least once.

    ``rows`` point to the ROWS rows, one 32-bit number a step; ``columns`` has GROUP 32-bit numbers a step.
    """
    first, end = span
    entry, body, done = builder.block, builder.append_basic_block("body"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(_INDEX)
    step.add_incoming(first, entry)
    running = _phi_sums(builder, sums)
    _add_incoming(running, sums, entry)
    at = builder.add(columns, builder.mul(step, _INDEX(GROUP * _BYTES_OF_WORD)))
    added = _one_step(builder, running, [builder.gep(row, [step]) for row in rows], at, add_product)
    following = builder.add(step, _INDEX(1))
    step.add_incoming(following, builder.block)
    _add_incoming(running, added, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), body, done)
    builder.position_at_end(done)
    return added


def _one_step(
    builder: ir.IRBuilder, sums: _Sums, rows: list[ir.Value], columns: ir.Value, add_product: _AddProduct
) -> _Sums:
    vector = sums[0][0].type
    base = builder.inttoptr(columns, vector.as_pointer())
    registers = [builder.load(builder.gep(base, [_INDEX(at)]), align=4) for at in range(COLUMNS)]
    added = []
    for row, pointer in zip(sums, rows, strict=True):
        number = _broadcast(builder, builder.load(pointer, align=1), vector)
        added.append([add_product(builder, sum_, number, column) for sum_, column in zip(row, registers, strict=True)])
    return added


def _zero_sums(element: ir.Type) -> _Sums:
    zero = ir.Constant(ir.VectorType(element, LANES), [0] * LANES)
    return [[zero] * COLUMNS for _ in range(ROWS)]


def _phi_sums(builder: ir.IRBuilder, sums: _Sums) -> _Sums:
    """Make a phi node for every sum: its value depends on the block that was executed before."""
    return [[builder.phi(value.type) for value in row] for row in sums]


def _add_incoming(phis: _Sums, sums: _Sums, block: ir.Block) -> None:
    """Give phi nodes their values for the case that ``block`` was executed before."""
    for phi_row, row in zip(phis, sums, strict=True):
        for phi, value in zip(phi_row, row, strict=True):
            phi.add_incoming(value, block)


# --- instructions ---


def dot_product(builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Add to every 32-bit lane of ``total`` the products of its four unsigned and four signed bytes.

    This is the instruction ``vpdpbusd`` of VNNI, the form without saturation. Without VNNI two products are added in 16
    bits, which hold them if the unsigned byte has 7 bits, and the two sums in 32. Tests replace this function on CPUs
    that have neither.
    """
    if UNIT.name == "avx2":
        unsigned, signed = (
            builder.bitcast(value, ir.VectorType(ir.IntType(8), 4 * LANES)) for value in (unsigned, signed)
        )
        pairs = ir.VectorType(ir.IntType(16), 2 * LANES)
        twos = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed, returns=pairs)
        ones = ir.Constant(pairs, [1] * 2 * LANES)
        return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", twos, ones, returns=total.type))
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{LANES * 32}", total, unsigned, signed)


def _add_row_unsigned(builder: ir.IRBuilder, total: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
    return dot_product(builder, total, row, column)


def _add_column_unsigned(builder: ir.IRBuilder, total: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
    return dot_product(builder, total, column, row)


def _add_float_product(builder: ir.IRBuilder, total: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
    return _call(builder, f"llvm.fma.v{LANES}f32", row, column, total)


def _call(builder: ir.IRBuilder, name: str, *arguments: ir.Value, returns: ir.Type | None = None) -> ir.Value:
    """Call an LLVM intrinsic; it returns a value of its first argument's type, unless it ``returns`` another."""
    kind = ir.FunctionType(returns or arguments[0].type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _broadcast(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.Type) -> ir.Value:
    """Copy a number to all lanes of a register."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, _WORD(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_WORD, LANES), [0] * LANES))


def _largest_lanes(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    return reduce(lambda a, b: builder.select(builder.icmp_signed(">", a, b), a, b), vectors)


def _row_pointers(builder: ir.IRBuilder, element: ir.Type, start: ir.Value, stride: ir.Value) -> list[ir.Value]:
    places = [builder.add(start, builder.mul(stride, _INDEX(row))) for row in range(ROWS)]
    return [builder.inttoptr(place, element.as_pointer()) for place in places]


def _load(builder: ir.IRBuilder, kind: ir.Type, address: ir.Value) -> ir.Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _load_vectors(builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """Load COLUMNS registers of 32-bit integers that lie one after another."""
    base = builder.inttoptr(address, ir.VectorType(_WORD, LANES).as_pointer())
    return [builder.load(builder.gep(base, [_INDEX(at)]), align=4) for at in range(COLUMNS)]


def _store(builder: ir.IRBuilder, sums: _Sums, out: ir.Value, stride: ir.Value) -> None:
    for number, row in enumerate(sums):
        base = builder.inttoptr(builder.add(out, builder.mul(stride, _INDEX(number))), row[0].type.as_pointer())
        for column, value in enumerate(row):
            builder.store(value, builder.gep(base, [_INDEX(column)]), align=4)
