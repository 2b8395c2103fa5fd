"""Plain data and rules: models, chunks, queries, artefacts on disk, privacy. Imports neither Dagster nor torch."""
