"""Read a bundle: as records, as a v4.0 bundle, or into Qdrant."""
