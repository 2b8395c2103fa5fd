"""Run models by sentence-transformers' own modules, and hold every fast path against them."""
