"""Compare the product with sentence-transformers on tiny models in the layouts that people publish."""
