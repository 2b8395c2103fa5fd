"""Run SPLADE models with torch, without holding a logit for every token and vocabulary entry.

    weight[v] = max over tokens of log1p(relu(logit[token, v]))     (Formal et al., SPLADE v2, arXiv 2109.10086)

Both functions are monotone, so the maximum is taken first, on raw logits. The bias is the same for every token, so it
is added after. That leaves a matrix product and a maximum. On a GPU they are computed for a few texts and a tile of the
vocabulary at a time, on a CPU by ``splade_head``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.library.forward import (
    LibraryBatch,
    LibraryFactory,
    LibraryForward,
    largest_weights,
)
from ensemble_assets.compute.backends.library.model import Features, LibraryModel, Task
from ensemble_assets.compute.splade_head.head import SparseHead
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

_TILE = (8192, 4096)
"""Tokens and vocabulary entries of one tile: 128 MiB of fp32."""


class TiledSparseForward(LibraryForward):
    """A masked language model whose last linear layer is applied apart; ``ModelUnavailableError`` for another one."""

    def __init__(self, model: LibraryModel, factory: LibraryFactory, device: str) -> None:
        super().__init__(model, factory, device)
        self._top_k = factory.top_k
        self._transformer: Any = next(model.model.children())
        self._decoder = detach_decoder(self._transformer.model, factory.spec.slug)
        self._head: SparseHead | None = None
        if not device.startswith("cuda"):
            layer = output_layer(self._decoder)
            self._head = SparseHead(*layer, factory.top_k, factory.runtime.threads, factory.runtime.cache_folder)

    def stage(self, table: TokenTable, batch: Batch) -> LibraryBatch:
        """Make the inputs of one batch of a table; see ``LibraryForward``."""
        if self._head is not None:
            self._head.expect_tokens(int(table.offsets[-1]))
        return super().stage(table, batch)

    def run(self, features: Features, task: Task) -> dict[str, torch.Tensor]:
        """Compute the weights and keep the largest, on the device."""
        mask = features["attention_mask"].bool()
        states = self._transformer(features)["token_embeddings"]  # the decoder is gone: these are its inputs
        if self._head is not None:
            outputs = self._head.encode_batch(states.float().numpy(), mask.sum(dim=1).numpy())
            return {name: torch.from_numpy(values) for name, values in outputs.items()}
        # padding repeats the row's first token: a maximum over duplicates is the maximum
        states = torch.where(mask.unsqueeze(2), states, states[:, :1])
        largest = largest_logits(states, self._decoder.weight, self._decoder.bias)
        return largest_weights(largest.clamp_(min=0).log1p_(), self._top_k)

    def release(self) -> None:
        """Drop the weights at once, those of the detached output layer too."""
        super().release()
        self._head = None
        self._decoder.to(device="meta")


def output_layer(linear: torch.nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give matrix ``[out, hidden]`` and bias ``[out]`` of a layer on the host, zeros where it has no bias."""
    matrix: NDArray[np.float32] = linear.weight.float().numpy()
    bias = np.zeros(len(matrix), np.float32) if linear.bias is None else linear.bias.float().numpy()
    return matrix, bias


def largest_logits(states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute every vocabulary entry's largest logit over a text's tokens, ``[batch, vocabulary] float32``.

    Args:
        states: ``[batch, tokens, hidden]``, every position a token of its text.
        matrix: ``[vocabulary, hidden]``, of the same type. Products are added up in float32, whatever it is.
        bias: ``[vocabulary]``.
    """
    batch, longest, _ = states.shape
    tokens, width = _TILE
    largest = torch.empty(batch, len(matrix), dtype=torch.float32, device=states.device)
    step = max(1, tokens // longest)
    for row in range(0, batch, step):
        some = states[row : row + step].flatten(0, 1)
        for left in range(0, len(matrix), width):
            part = matrix[left : left + width]
            if some.is_cuda and some.dtype != torch.float32:
                # rounded to half, logits tie by the dozen, and a text's largest weights are others than on a CPU
                logits = torch.mm(some, part.T, out_dtype=torch.float32)
            else:
                logits = torch.nn.functional.linear(some.float(), part.float())
            largest[row : row + step, left : left + width] = logits.view(-1, longest, logits.shape[1]).amax(dim=1)
    return largest if bias is None else largest.add_(bias.float())


def detach_decoder(network: torch.nn.Module, slug: str) -> torch.nn.Linear:
    """Take the output layer out of the network, which then returns that layer's inputs as its logits.

    The probe shows whether the architecture does more after it, such as scaling. ``ModelUnavailableError`` if there is
    no linear output layer.
    """
    any_network: Any = network
    decoder = any_network.get_output_embeddings()
    names = [name for name, module in network.named_modules() if module is decoder]
    if not isinstance(decoder, torch.nn.Linear) or len(names) != 1:
        raise ModelUnavailableError(f"{slug}: has no linear output layer over its vocabulary. Choose a SPLADE model")
    network.set_submodule(names[0], torch.nn.Identity())
    return decoder
