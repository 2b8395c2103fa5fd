"""Models: the registry, custom models files, and the files of a model."""
