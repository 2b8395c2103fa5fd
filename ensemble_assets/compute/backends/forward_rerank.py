"""(query, chunk) pairs to relevance logits: a sequence-classification model with one label.

Which pairs, and what becomes of the logits, is ``rerank``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.padding import Inputs
from ensemble_assets.compute.backends.torch_loading import ForwardSettings, TorchFactory, TorchForward, load_network

_HEADS = ("classifier", "score")
"""What transformers calls the classification head."""


@dataclass(frozen=True)
class RerankFactory(TorchFactory):
    """Makes forwards with one output, ``logit`` ``[batch] float32``: unbounded, higher is more relevant."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One logit per pair."""
        return {"logit": OutputSpec((), "float32")}

    def load(self, device: str) -> RerankForward:
        """Load onto ``device``; the head is kept in fp32, since half-precision logits tie.

        Raises:
            ModelUnavailableError: if the files do not make a classifier with one label.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        network = load_network(AutoModelForSequenceClassification, self.spec, self.files, self.runtime, device)
        config: Any = network.config
        if config.num_labels != 1:
            raise ModelUnavailableError(
                f"{self.spec.slug}: has {config.num_labels} labels; a reranker has one. Choose another model"
            )
        for head in (getattr(network, name, None) for name in _HEADS):
            if isinstance(head, torch.nn.Module):
                head.float().register_forward_pre_hook(_in_fp32)
        return RerankForward(network, ForwardSettings(self.spec.slug, self.outputs, self.runtime), device)


def _in_fp32(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in arguments)


class RerankForward(TorchForward):
    """A CrossEncoder on a device."""

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """The single label's logit, before any activation."""
        return {"logit": self.run_network(inputs).logits[:, 0].float()}
