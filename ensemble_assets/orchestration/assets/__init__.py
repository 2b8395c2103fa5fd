"""The assets, one file each, in pipeline order: inputs, first stage, ranking, bundle."""

from ensemble_assets.orchestration.assets.chunks import chunks
from ensemble_assets.orchestration.assets.dense import dense_embeddings
from ensemble_assets.orchestration.assets.queries import queries

ALL_ASSETS = (chunks, queries, dense_embeddings)
"""In pipeline order."""
