"""The rerank stage: a CrossEncoder, late interaction, or both, over the fused candidates."""
