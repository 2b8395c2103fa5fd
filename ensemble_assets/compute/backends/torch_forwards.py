"""Run encoders, CrossEncoders and late interaction with torch. Pooling, norms and logits are computed in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.late_interaction import SCORES, STATES, LateInteractionForward
from ensemble_assets.compute.backends.torch_loading import (
    ForwardSettings,
    Inputs,
    TorchFactory,
    TorchForward,
    load_network,
)


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
        """Pool and normalise the states in fp32, whatever the network's dtype."""
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


@dataclass(frozen=True)
class LateInteractionFactory(TorchFactory):
    """Makes forwards with one output, ``logit`` ``[batch] float32``, 0 to 1."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One score per pair."""
        return SCORES

    def load(self, device: str) -> LateInteractionForward:
        """Load the encoder onto ``device``.

        Raises:
            ModelUnavailableError: if the files do not make an encoder.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        network = load_network(AutoModel, self.spec, self.files, self.runtime, device)
        return LateInteractionForward(
            StatesForward(network, ForwardSettings(self.spec.slug, STATES, self.runtime), device)
        )


class StatesForward(TorchForward):
    """An encoder that gives unit vectors of all tokens."""

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Normalise every state in fp32, whatever the network's dtype; those of padding have no meaning."""
        states = self.run_network(inputs).last_hidden_state.float()
        return {"states": torch.nn.functional.normalize(states, p=2.0, dim=2).half()}


_HEADS = ("classifier", "score")
"""Names of the classification head in transformers' models."""


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
        """Compute the single label's logit, before any activation."""
        return {"logit": self.run_network(inputs).logits[:, 0].float()}
