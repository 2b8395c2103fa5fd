"""Make the factory of a model for torch or OpenVINO. Classes are imported here, since each imports its library."""

from __future__ import annotations

from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec


def torch_factory(
    spec: ModelSpec,
    files: ModelFiles,
    runtime: Runtime,
    reason: str,
    traits: ModelTraits,
    *,
    top_k: int = 0,
    tiled: bool = True,
) -> ForwardFactory:
    """Make a factory that runs the library's modules, for a SPLADE model with the tiled output layer unless refused."""
    from ensemble_assets.compute.backends.library.forward import LibraryFactory, LibrarySparseFactory

    if spec.kind != "sparse":
        return LibraryFactory(spec, files, runtime, reason, traits)
    if traits.body != "splade_max" or not tiled:
        return LibrarySparseFactory(spec, files, runtime, reason, traits, top_k)
    from ensemble_assets.compute.backends.library.tiled_splade import TiledSparseFactory

    return TiledSparseFactory(spec, files, runtime, reason, traits, top_k)


def openvino_factory(
    spec: ModelSpec, files: ModelFiles, runtime: Runtime, reason: str, traits: ModelTraits, *, top_k: int = 0
) -> ForwardFactory:
    """Make a factory that runs the model's graph; convert it if this machine has none yet.

    Raises:
        ModelUnavailableError: if the model cannot be converted.
    """
    from ensemble_assets.compute.backends import openvino_forwards
    from ensemble_assets.compute.backends.openvino_graph import graph_for

    assert runtime.cache_folder is not None
    graph = graph_for(spec, files, traits.layouts["document"], runtime.cache_folder)
    if spec.kind == "sparse":
        return openvino_forwards.OpenVinoSparseFactory(spec, files, runtime, reason, traits, top_k, graph=graph)
    if spec.pooling == "late_interaction":
        return openvino_forwards.OpenVinoLateInteractionFactory(spec, files, runtime, reason, traits, graph=graph)
    dense = spec.kind == "dense"
    factory = openvino_forwards.OpenVinoDenseFactory if dense else openvino_forwards.OpenVinoRerankFactory
    return factory(spec, files, runtime, reason, traits, graph=graph)
