"""Turn settings and artefacts into the work of each stage, without Dagster."""
