"""Read and write what a stage leaves on disk: artefacts, their records, the two baselines."""
