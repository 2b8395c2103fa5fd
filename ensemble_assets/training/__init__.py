"""Makes the embedded reranker from licence-clean data. Imported by nothing else in the package."""
