"""(query, chunk) pairs to late-interaction scores: a torch encoder's token states, compared by ``late_interaction``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoModel

from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.late_interaction import SCORES, STATES, LateInteractionForward
from ensemble_assets.compute.backends.padding import Inputs
from ensemble_assets.compute.backends.torch_loading import ForwardSettings, TorchFactory, TorchForward, load_network


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
    """An encoder on a device: texts to the unit vectors of all their tokens."""

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Normalised in fp32, whatever the network's dtype; padding has vectors too, which mean nothing."""
        states = self.run_network(inputs).last_hidden_state.float()
        return {"states": torch.nn.functional.normalize(states, p=2.0, dim=2).half()}
