"""Plan batches that fit into memory, and decide which device runs which batch."""
