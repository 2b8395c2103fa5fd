"""Texts to the unit vectors of all their tokens, on torch. What is done with them is ``late_interaction``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoModel

from ensemble_assets.compute.loading import ForwardSettings, TorchFactory, TorchForward, load_network
from ensemble_assets.compute.padding import Inputs
from ensemble_assets.compute.work import OutputSpec


@dataclass(frozen=True)
class StatesFactory(TorchFactory):
    """Makes forwards with one output, ``states`` ``[batch, longest, width] float16``, rows of length 1."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """A vector per token; rows of several batches differ in length."""
        return {"states": OutputSpec((self.spec.max_tokens, self.width), "float16")}

    def load(self, device: str) -> StatesForward:
        """Load onto ``device``.

        Raises:
            ModelUnavailableError: if the files do not make an encoder.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        network = load_network(AutoModel, self.spec, self.files, self.runtime, device)
        return StatesForward(network, ForwardSettings(self.spec.slug, self.outputs, self.runtime), device)


class StatesForward(TorchForward):
    """An encoder on a device."""

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Normalised in fp32, whatever the network's dtype; padding has vectors too, which mean nothing."""
        states = self.run_network(inputs).last_hidden_state.float()
        return {"states": torch.nn.functional.normalize(states, p=2.0, dim=2).half()}
