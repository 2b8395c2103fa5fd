"""Show the pipeline to Dagster: assets, checks, resources, IO manager, partitions, jobs, schedule and sensors."""
