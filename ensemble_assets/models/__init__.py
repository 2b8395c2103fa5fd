"""Know models: the registry, a custom models file, and where the files of a model are."""
