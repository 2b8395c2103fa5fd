"""The Dagster face: assets, checks, resources, IO managers, partitions, jobs. Thin calls into the stages."""
