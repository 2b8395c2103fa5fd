"""Texts to learned sparse vectors (SPLADE) without ever holding a logit per token and vocabulary entry.

weight[v] = max over tokens of log1p(relu(logit[token, v])) (Formal et al., SPLADE v2, arXiv 2109.10086). Both functions
are monotone, so the maximum can be taken first, on raw logits; and the bias is the same for every token, so it is added
after. That leaves a matrix product and a maximum, done for a few texts and a tile of the vocabulary at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from ensemble_assets.compute.loading import ForwardSettings, TorchFactory, TorchForward, load_network
from ensemble_assets.compute.padding import Inputs
from ensemble_assets.compute.work import OutputSpec
from ensemble_assets.core.errors import ModelUnavailableError

DEFAULT_TOP_K = 256
"""Entries kept per chunk. On SciFact nDCG@10 is the same with 128 and 256 and drops below."""

_TILES = {"cpu": (512, 2048), "cuda": (16384, 4096)}
"""(tokens, vocabulary entries) of one tile: stays in the CPU's level-2 cache; 128 MiB of fp16 on a GPU."""

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class SparseFactory(TorchFactory):
    """Makes SPLADE forwards.

    Outputs are ``index`` ``[batch, top_k] int32`` (unused places -1) with ``weight`` ``[batch, top_k] float32``, by
    falling weight, and ``active`` ``[batch] int32``, the positive weights before pruning. With ``top_k`` 0:
    ``weight`` ``[batch, vocabulary] float32`` and ``active``.
    """

    top_k: int = DEFAULT_TOP_K

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """See the class."""
        active = {"active": OutputSpec((), "int32")}
        if self.top_k == 0:
            return {"weight": OutputSpec((self.spec.dimension,), "float32"), **active}
        kept = min(self.top_k, self.spec.dimension)
        return {"index": OutputSpec((kept,), "int32"), "weight": OutputSpec((kept,), "float32"), **active}

    def load(self, device: str) -> SparseForward:
        """Load onto ``device``.

        Raises:
            ModelUnavailableError: if the files do not make a masked language model with a plain linear output.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        network = load_network(AutoModelForMaskedLM, self.spec, self.files, self.runtime, device)
        decoder = _detach_decoder(network, self.spec.slug, device)
        settings = ForwardSettings(self.spec.slug, self.outputs, self.runtime)
        return SparseForward(network, settings, device, decoder, self.top_k)


class SparseForward(TorchForward):
    """A masked language model whose last linear layer is applied in tiles."""

    def __init__(
        self, network: torch.nn.Module, settings: ForwardSettings, device: str, decoder: torch.nn.Linear, top_k: int
    ) -> None:
        super().__init__(network, settings, device)
        self._decoder = decoder
        self._top_k = top_k
        self._tile = _TILES[device.partition(":")[0]]

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Weights by the formula above, pruned to the largest on the device."""
        states = self.run_network(inputs).logits  # the decoder is gone: these are its inputs
        if inputs.padded:
            # padding repeats the row's first token: a maximum over duplicates is the maximum
            states = torch.where(inputs.mask.unsqueeze(2), states, states[:, :1])
        weights = self._largest_logits(states).clamp_(min=0).log1p_()
        active = (weights > 0).sum(dim=1, dtype=torch.int32)
        if self._top_k == 0:
            return {"weight": weights, "active": active}
        kept, index = torch.topk(weights, min(self._top_k, weights.shape[1]), dim=1)
        # a NaN stays (it compares false here too), so that the engine sees it
        index = torch.where(kept == 0, -1, index).to(torch.int32)
        return {"index": index, "weight": kept, "active": active}

    def release(self) -> None:
        """Drop the weights at once, those of the detached output layer too."""
        super().release()
        self._decoder.to(device="meta")

    def _largest_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The largest logit of every vocabulary entry, ``[batch, vocabulary] float32``."""
        batch, longest, _ = states.shape
        matrix, bias = self._decoder.weight, self._decoder.bias
        largest = torch.empty(batch, len(matrix), dtype=torch.float32, device=states.device)
        step, width = max(1, self._tile[0] // longest), self._tile[1]
        for row in range(0, batch, step):
            some = states[row : row + step].flatten(0, 1)
            for left in range(0, len(matrix), width):
                logits = torch.nn.functional.linear(some, matrix[left : left + width])
                largest[row : row + step, left : left + width] = logits.view(-1, longest, logits.shape[1]).amax(dim=1)
        return largest if bias is None else largest.add_(bias.float())


def _detach_decoder(network: torch.nn.Module, slug: str, device: str) -> torch.nn.Linear:
    """Take the output layer out of the network, which then returns that layer's inputs as its logits.

    Checked on a few tokens: an architecture that does more after its output layer (scaling, capping) is refused.
    """
    any_network: Any = network
    decoder = any_network.get_output_embeddings()
    names = [name for name, module in network.named_modules() if module is decoder]
    if not isinstance(decoder, torch.nn.Linear) or len(names) != 1:
        raise ModelUnavailableError(f"{slug}: has no linear output layer over its vocabulary. Choose a SPLADE model")
    ids = torch.arange(min(_PROBE_TOKENS, decoder.out_features), device=device).unsqueeze(0)
    with torch.inference_mode():
        expected = any_network(input_ids=ids).logits.float()
        network.set_submodule(names[0], torch.nn.Identity())
        got = decoder(any_network(input_ids=ids).logits).float()
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-2, atol=1e-2):
        raise ModelUnavailableError(f"{slug}: does more than a linear layer to get its logits. Choose a SPLADE model")
    return decoder
