"""Read a bundle: record by record, or into Qdrant."""
