"""Run the three model stages: dense, sparse and rerank."""
