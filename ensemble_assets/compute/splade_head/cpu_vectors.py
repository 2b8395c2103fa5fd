"""What this CPU's vector instructions offer to compiled kernels. Asks llvmlite and numba; compiles nothing."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec


@lru_cache(maxsize=1)
def dot_product_lanes() -> int:
    """32-bit lanes of the widest 8-bit dot-product instruction (VNNI) that numba may emit here; 0 where there is none.

    16 with AVX-512 VNNI, 8 with AVX-VNNI. Zero, too, where numba is missing or was told to compile for another CPU than
    this one (its settings NUMBA_CPU_NAME and NUMBA_CPU_FEATURES): code for an instruction that it may not use would end
    the process.
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
    if features.get("avx512vnni") and features.get("avx512vl") and features.get("avx512bw"):
        return 16
    return 8 if features.get("avxvnni") and features.get("avx2") and features.get("fma") else 0
