"""Store the outputs of rows on disk, and find them again."""
