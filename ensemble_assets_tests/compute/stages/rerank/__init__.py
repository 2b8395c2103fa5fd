"""Test ensemble_assets.compute.stages.rerank."""
