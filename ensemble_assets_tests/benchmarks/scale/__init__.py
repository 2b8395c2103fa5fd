"""Cost and memory of the whole pipeline as a collection grows."""
