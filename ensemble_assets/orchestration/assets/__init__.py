"""The assets, one file each, in pipeline order: inputs, first stage, ranking, bundle."""
