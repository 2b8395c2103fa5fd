"""Find out which vector instructions of this CPU the compiled code may use, without importing numba."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec


@lru_cache(maxsize=1)
def dot_product_lanes() -> int:
    """Return the 32-bit lanes of the widest 8-bit dot-product instruction that numba may emit here.

    They are 16 with AVX-512 VNNI, 8 with AVX-VNNI, and 0 with neither. They are also 0 where numba is missing, or is
    set to compile for another CPU (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES): an instruction that the CPU lacks ends the
    process.
    """
    if find_spec("numba") is None:
        return 0
    try:
        import llvmlite.binding as llvm
        from numba import config

        features = llvm.get_host_cpu_features()
    except (ImportError, RuntimeError):  # numba refuses numpy versions that it does not know
        return 0
    if config.CPU_NAME or config.CPU_FEATURES or config.DISABLE_JIT:
        return 0
    # LLVM may use VL and BW instructions in the code around the dot product
    if features.get("avx512vnni") and features.get("avx512vl") and features.get("avx512bw"):
        return 16
    return 8 if features.get("avxvnni") and features.get("avx2") and features.get("fma") else 0
