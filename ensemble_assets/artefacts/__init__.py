"""Read and write the files that a stage leaves on disk: artefacts, their records, the two baselines."""
