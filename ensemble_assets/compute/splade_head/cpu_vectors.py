"""Find out which vector instructions of this CPU the compiled code may use, without importing numba."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal


@dataclass(frozen=True)
class VectorUnit:
    """The instructions that the compiled code is made of.

    Attributes:
        name: ``avx512_vnni`` and ``avx_vnni`` have an instruction for 8-bit dot products. ``avx2`` does without.
        lanes: 32-bit numbers in a register.
    """

    name: Literal["avx512_vnni", "avx_vnni", "avx2"]
    lanes: int

    @property
    def state_bits(self) -> int:
        """Bits of a quantised state. Without the dot-product instruction sums of two products have 16 bits, so 7."""
        return 7 if self.name == "avx2" else 8


_UNITS = (
    (VectorUnit("avx512_vnni", 16), ("avx512vnni", "avx512vl", "avx512bw")),
    (VectorUnit("avx_vnni", 8), ("avxvnni", "avx2", "fma")),
    (VectorUnit("avx2", 8), ("avx2", "fma")),
)
"""Every unit, the fastest first, with LLVM's names of what it needs. LLVM may use VL and BW around the dot product."""


@lru_cache(maxsize=1)
def vector_unit() -> VectorUnit | None:
    """Return the fastest unit that numba may emit code for here; None if there is none.

    It is None too where numba is missing, or is set to compile for another CPU (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES): an
    instruction that the CPU lacks ends the process.
    """
    if find_spec("numba") is None:
        return None
    try:
        import llvmlite.binding as llvm
        from numba import config

        features = llvm.get_host_cpu_features()
    except (ImportError, RuntimeError):  # numba refuses numpy versions that it does not know
        return None
    if config.CPU_NAME or config.CPU_FEATURES or config.DISABLE_JIT:
        return None
    return next((unit for unit, needs in _UNITS if all(map(features.get, needs))), None)
