"""The assets, one file each."""

from ensemble_assets.orchestration.assets.chunks import chunks
from ensemble_assets.orchestration.assets.dense import dense_embeddings
from ensemble_assets.orchestration.assets.evaluation import evaluation
from ensemble_assets.orchestration.assets.export import export_bundle
from ensemble_assets.orchestration.assets.fusion import fused_candidates
from ensemble_assets.orchestration.assets.qdrant import qdrant_collection
from ensemble_assets.orchestration.assets.queries import queries
from ensemble_assets.orchestration.assets.rerank import reranked_candidates
from ensemble_assets.orchestration.assets.sparse import sparse_vectors

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
"""In pipeline order."""

SERVING_ASSETS = (qdrant_collection,)
"""Assets that hand a bundle to another system. The default job leaves them out."""
