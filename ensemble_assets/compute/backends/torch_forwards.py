"""Texts to unit vectors: an encoder, its pooling, and the L2 norm in fp32.

Truncation, batches and prefixes are settled before; combining several models is ``dense``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoModel

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.padding import Inputs
from ensemble_assets.compute.backends.torch_loading import ForwardSettings, TorchFactory, TorchForward, load_network


@dataclass(frozen=True)
class DenseFactory(TorchFactory):
    """Makes forwards with one output, ``vector`` ``[batch, dimension] float32``, rows of length 1."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One unit vector per text."""
        return {"vector": OutputSpec((self.spec.dimension,), "float32")}

    def load(self, device: str) -> DenseForward:
        """Load onto ``device``.

        Raises:
            ModelUnavailableError: if the files do not make an encoder with a known pooling.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        pool = _POOLINGS.get(self.spec.pooling)
        if pool is None:
            raise ModelUnavailableError(
                f"{self.spec.slug}: pooling {self.spec.pooling!r} is not one of {', '.join(_POOLINGS)}. "
                "Correct the spec"
            )
        network = load_network(AutoModel, self.spec, self.files, self.runtime, device)
        return DenseForward(network, ForwardSettings(self.spec.slug, self.outputs, self.runtime), device, self)


class DenseForward(TorchForward):
    """An encoder on a device."""

    def __init__(self, network: torch.nn.Module, settings: ForwardSettings, device: str, factory: DenseFactory) -> None:
        super().__init__(network, settings, device)
        self._pool = _POOLINGS[factory.spec.pooling]

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Pooled and normalised in fp32, whatever the network's dtype."""
        states = self.run_network(inputs).last_hidden_state
        pooled = self._pool(states, inputs)
        return {"vector": torch.nn.functional.normalize(pooled, p=2.0, dim=1)}


def _mean(states: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    weights = inputs.mask.unsqueeze(1).float()
    return torch.bmm(weights, states.float()).squeeze(1) / inputs.lengths.unsqueeze(1)


def _first(states: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return states[:, 0].float()


def _last(states: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), inputs.lengths - 1].float()


_POOLINGS = {"mean": _mean, "cls": _first, "last_token": _last}
