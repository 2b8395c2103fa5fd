"""Retrieval artifacts from chunked documents and queries, orchestrated by Dagster.

The package's parts and the one direction in which they import each other are listed in the README. Nothing is imported
here, so that ``import ensemble_assets`` costs nothing.
"""

__version__ = "0.1.0"
