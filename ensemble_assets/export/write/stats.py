"""Make the statistics of a bundle, ``<prefix>_stats.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ensemble_assets.export.write.inputs import BundleInputs

_BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True)
class SparseCounts:
    """Chunks counted by the kind of their sparse vector. An echo is also counted when the sparse stage is on."""

    total: int
    echoed: int = 0
    live: int = 0
    from_metadata: int = 0

    @property
    def available(self) -> int:
        """Chunks with a vector of the sparse stage."""
        return self.live + self.from_metadata


def statistics(bundle: BundleInputs, sparse: SparseCounts) -> dict[str, Any]:
    """Make the object of ``<prefix>_stats.json``.

    With the sparse stage on, ``sparse_vector_stats`` keeps the v4.0 figures and gains ``live`` after them.
    """
    primary = bundle.primary
    stats: dict[str, Any] = {
        "kaggle_environment": False,
        "model_config": {
            "name": primary.slug,
            "hf_model_id": primary.hf_model_id,
            "vector_dimension": int(primary.vectors.shape[1]),
            "max_tokens": primary.max_tokens,
        },
        "gpu_config": asdict(bundle.devices),
        "embedding_stats": {
            "total_embeddings": bundle.count,
            "embedding_dimension": int(primary.vectors.shape[1]),
            "memory_usage_mb": primary.vectors.nbytes / _BYTES_PER_MB,
        },
        "processing_performance": dict(bundle.performance),
        "export_timestamp": bundle.clock,
    }
    if sparse.total:
        figures: dict[str, Any] = {
            "total_chunks": sparse.total,
            "sparse_vectors_available": sparse.echoed,
            "coverage_ratio": sparse.echoed / sparse.total,
        }
        if bundle.sparse is not None:
            figures["live"] = {
                "model": bundle.sparse.model,
                "sparse_vectors_available": sparse.available,
                "from_metadata": sparse.from_metadata,
                "coverage_ratio": sparse.available / sparse.total,
            }
        stats["sparse_vector_stats"] = figures
    stats["dense_vector_layout"] = {
        model.slug: {
            "dimension": int(model.vectors.shape[1]),
            "memory_mb": model.vectors.nbytes / _BYTES_PER_MB,
            "is_primary": model is primary,
        }
        for model in bundle.dense
    }
    return stats
