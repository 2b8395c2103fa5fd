"""The assets, one file per kind."""

from ensemble_assets.orchestration.assets.bundles import export_bundle, qdrant_collection
from ensemble_assets.orchestration.assets.inputs import chunks, queries
from ensemble_assets.orchestration.assets.ranking import evaluation, fused_candidates, reranked_candidates
from ensemble_assets.orchestration.assets.vectors import dense_embeddings, sparse_vectors

ALL_ASSETS = (
    chunks,
    queries,
    dense_embeddings,
    sparse_vectors,
    fused_candidates,
    reranked_candidates,
    evaluation,
    export_bundle,
)
"""The assets in pipeline order."""

SERVING_ASSETS = (qdrant_collection,)
"""Assets that hand a bundle to another system. The default job leaves them out."""
