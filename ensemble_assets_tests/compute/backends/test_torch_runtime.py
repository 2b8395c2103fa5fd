"""Loading refuses what would silently be wrong, and no exception of a model carries text or tensors out."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError, StageError
from ensemble_assets.compute.backends import torch_runtime as loading
from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.loading import load_library_model, load_row_maker
from ensemble_assets.compute.backends.torch_runtime import exact_medium, kernels
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.spec import HubSource
from ensemble_assets_tests.compute.backends.checkpoints import checkpoint, one_batch
from ensemble_assets_tests.compute.running.doubles import table_of

FACTORIES = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}
RUNTIME = Runtime(threads=1)
TABLE = table_of([[2, 10, 11, 3], [2, 12, 3]])


def factory_of(tmp_path, kind="dense", **options):
    spec = checkpoint(tmp_path / kind, kind, **options)
    return FACTORIES[kind](spec, locate(spec), RUNTIME)


def forward_that_raises(tmp_path, error: Exception):
    forward = factory_of(tmp_path).load("cpu")

    def fail(features, **words):
        raise error

    forward._model.model = fail
    return forward


def test_a_models_exception_keeps_its_class_and_loses_its_text(tmp_path):
    forward = forward_that_raises(tmp_path, ValueError("terces"[::-1]))
    with pytest.raises(ModelFailedError, match=r"2 rows of up to 4 tokens \(ValueError\)") as caught:
        forward(TABLE, one_batch(TABLE))
    assert caught.value.reason == "ValueError"
    assert caught.value.__context__ is None
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_an_exception_class_that_only_a_library_has_is_named_by_its_base(tmp_path):
    with pytest.raises(ModelFailedError) as caught:
        forward_that_raises(tmp_path, torch.linalg.LinAlgError("x"))(TABLE, one_batch(TABLE))
    assert caught.value.reason == "RuntimeError"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA driver error: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_told_apart(tmp_path, error):
    with pytest.raises(DeviceOutOfMemoryError, match="2 rows of up to 4 tokens"):
        forward_that_raises(tmp_path, error)(TABLE, one_batch(TABLE))


def test_torchs_own_allocator_error_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert loading.is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), ValueError("out of memory")])
def test_other_failures_are_not(error):
    assert not loading.is_out_of_memory(error)


def test_a_lost_device_is_a_device_error(tmp_path):
    with pytest.raises(DeviceError, match="cpu failed"):
        forward_that_raises(tmp_path, torch.AcceleratorError("device-side assert"))(TABLE, one_batch(TABLE))


def test_errors_survive_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(ModelFailedError("m", "ValueError", 3, 9)))
    assert (error.model, error.reason, error.size, error.longest) == ("m", "ValueError", 3, 9)
    assert str(error) == "m: the model failed on a batch of 3 rows of up to 9 tokens (ValueError)"


@pytest.mark.parametrize("kind", FACTORIES)
def test_factories_are_picklable_and_know_their_outputs_before_loading(tmp_path, kind):
    factory = factory_of(tmp_path, kind)
    copy = pickle.loads(pickle.dumps(factory))
    assert copy == factory
    results = copy.load("cpu")(TABLE, one_batch(TABLE))
    assert {name: (values.shape, values.dtype) for name, values in results.items()} == {
        name: ((2, *spec.shape), np.dtype(spec.dtype)) for name, spec in factory.outputs.items()
    }


def test_identity_changes_with_precision_and_full_precision_is_fp32(tmp_path):
    factory = factory_of(tmp_path)
    full = factory.full_precision()
    assert full.runtime == Runtime("fp32", threads=1)
    assert full.identity != factory.identity
    assert ":torch:fp32:" in full.identity


@pytest.mark.parametrize(("kind", "saved_as"), [("rerank", "dense"), ("sparse", "rerank")])
def test_a_checkpoint_without_the_needed_head_is_refused(tmp_path, kind, saved_as):
    spec = replace(checkpoint(tmp_path / "other", saved_as), kind=kind)
    with pytest.raises(ModelUnavailableError, match="weights lack"):
        FACTORIES[kind](spec, locate(spec), RUNTIME)


def test_an_encoder_may_lack_the_pooler_it_does_not_use(tmp_path):
    spec = replace(checkpoint(tmp_path / "mlm", "sparse"), kind="dense", dimension=32)
    assert dense_factory(spec, locate(spec), RUNTIME).load("cpu")(TABLE, one_batch(TABLE))["vector"].shape == (2, 32)


def test_files_that_are_no_model_are_unavailable(tmp_path):
    factory = factory_of(tmp_path)
    (factory.files.folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelUnavailableError, match="cannot load it as a dense model"):
        factory.load("cpu")


def test_more_than_one_label_is_no_reranker(tmp_path):
    with pytest.raises(ModelUnavailableError, match="has 3 labels"):
        factory_of(tmp_path, "rerank", labels=3)


@pytest.mark.parametrize(("revision", "allowed"), [("main", False), ("0" * 40, True)])
def test_remote_code_needs_a_pinned_revision(tmp_path, revision, allowed):
    factory = factory_of(tmp_path)
    trusting = replace(factory.spec, trust_remote_code=True, source=HubSource("a/b", revision))
    if allowed:
        replace(factory, spec=trusting).load("cpu")
    else:
        with pytest.raises(ModelUnavailableError, match="full 40-digit commit"):
            replace(factory, spec=trusting).load("cpu")


def test_kernel_settings_are_put_back():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with kernels(Runtime(threads=1), "cpu"):
        assert torch.get_num_threads() == 1
        assert torch.get_float32_matmul_precision() == ("medium" if exact_medium() else "highest")
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_medium_precision_is_only_used_where_it_is_float32(monkeypatch):
    def rounded(left, right):
        return (left.bfloat16() @ right.bfloat16().T).float()

    loading.exact_medium.cache_clear()
    monkeypatch.setattr(torch.nn.functional, "linear", rounded)
    assert not exact_medium()
    loading.exact_medium.cache_clear()


def test_auto_precision_on_a_cpu_is_fp32(tmp_path):
    assert loading.resolve_precision("auto", "cpu", tmp_path) == "fp32"
    assert loading.resolve_precision("bf16", "cpu", tmp_path) == "bf16"


def test_releasing_frees_the_weights(tmp_path):
    forward = factory_of(tmp_path, "sparse").load("cpu")
    forward.release()
    assert all(parameter.device.type == "meta" for parameter in forward._model.model.parameters())


@pytest.mark.parametrize("kind", FACTORIES)
def test_making_rows_takes_no_weights(tmp_path, kind):
    spec = checkpoint(tmp_path / kind, kind)
    model = load_row_maker(spec, locate(spec))
    texts = [("storm", "wind and rain")] if kind == "rerank" else ["wind and rain"]
    whole = FACTORIES[kind](spec, locate(spec), RUNTIME)
    assert {weight.device.type for weight in model.model.parameters()} == {"meta"}
    assert (
        model.rows(texts, "document").ids.tolist()
        == load_library_model(spec, locate(spec), RUNTIME, "cpu").rows(texts, "document").ids.tolist()
    )
    assert model.layouts["document"] == whole.traits.layouts["document"]


def test_a_preprocessing_that_fails_carries_no_text(tmp_path):
    spec = checkpoint(tmp_path / "rerank", "rerank")
    model = load_library_model(spec, locate(spec), RUNTIME, "cpu")
    model.model[0].processing_kwargs["text"] = {"truncation": "only_second"}
    with pytest.raises(StageError, match=r"fails on one of 1 texts \(\w+\)$") as caught:
        model.rows([("terces "[::-1] * 60, "wind")], "document")
    assert caught.value.__context__ is None
