"""Read a collection: folders, chunks, queries, qrels, and the text that each stage takes from them."""
