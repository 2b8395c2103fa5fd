"""The 8-bit dot-product instruction written as plain LLVM, so that the compiled screen is tested on every CPU."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ensemble_assets.compute.splade_head import llvm_blocks


def emulated(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Add to every 32-bit lane of ``total`` the products of its four unsigned and four signed bytes."""
    lanes = total.type.count
    single_bytes = ir.VectorType(ir.IntType(8), 4 * lanes)
    words = ir.VectorType(ir.IntType(32), 4 * lanes)
    left = builder.zext(builder.bitcast(unsigned, single_bytes), words)
    right = builder.sext(builder.bitcast(signed, single_bytes), words)
    products = builder.mul(left, right)
    for byte in range(4):
        places = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [4 * lane + byte for lane in range(lanes)])
        total = builder.add(total, builder.shuffle_vector(products, products, places))
    return total


def emulate() -> None:
    """Let this process compile the screen with ``emulated``. Call it before anything is compiled."""
    llvm_blocks.dot_product = emulated
