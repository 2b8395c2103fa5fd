"""Compare the pipeline with a plain sentence-transformers script: ``python -m`` this package."""
