"""Have an encoder compute its rows end to end, without padding, where attention takes rows of different lengths.

Embeddings, pooling and head see padded rows as before. Between them the layers get one row of all tokens, and attention
gets where each text begins. On a CPU a mask of one block per text stands in, which is slow: a reference for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ensemble_assets.compute.backends.library.model import LibraryModel

Packing = Literal["off", "packed", "architecture", "precision", "capability", "torch"]
"""Whether rows are packed, or what does not allow it; ``off`` where nobody asked."""

_NAME = "ensemble_packed_rows"
_ENCODERS = {"bert": "BertEncoder", "roberta": "RobertaEncoder", "xlm-roberta": "XLMRobertaEncoder"}
"""Architectures whose layers know nothing of positions, and hand what they are given on to attention."""

_FLASH = (8, 0)
"""Compute capability of the kernel behind ``varlen_attn``, which takes half precisions only."""


_HEAD_STEP, _WIDEST_HEAD = 8, 256
"""Widths of a head that this kernel takes: multiples of the first, up to the second."""


def pack_rows(model: LibraryModel, device: str) -> Packing:
    """Make a loaded model compute without padding; return ``packed``, or why it goes on as it is."""
    names = {type(module).__name__: module for module in model.model.modules()}
    networks = [module for module in model.model.modules() if hasattr(module, "set_attn_implementation")]
    kind = networks[0].config.model_type if networks else ""
    encoder = names.get(_ENCODERS.get(kind, ""))
    if encoder is None or model.spec.is_colbert:  # whose masked tokens may have vectors, too
        return "architecture"
    if device.startswith("cuda"):
        if next(encoder.parameters()).dtype not in (torch.float16, torch.bfloat16):
            return "precision"
        head = networks[0].config.hidden_size // networks[0].config.num_attention_heads
        if head % _HEAD_STEP or head > _WIDEST_HEAD:
            return "architecture"
        if torch.cuda.get_device_capability(device) < _FLASH:
            return "capability"
        if find_spec("torch.nn.attention.varlen") is None:  # since torch 2.10
            return "torch"
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _plain_mask)
    for network in networks:
        network.set_attn_implementation(_NAME)
    encoder.forward = partial(_end_to_end, encoder.forward)
    return "packed"


def _plain_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """Hand the mask of padding on as it is: ``[batch, longest]``, or None without padding."""
    return attention_mask


def _end_to_end(
    forward: Callable[..., Any], states: torch.Tensor, attention_mask: torch.Tensor | None = None, **words: Any
) -> Any:
    """Call an encoder with the tokens of all rows as one row, and put what it makes back into padded rows."""
    rows, longest, width = states.shape
    used = torch.ones(rows, longest, dtype=torch.bool, device=states.device)
    if attention_mask is not None:
        used = attention_mask.bool()
    starts = torch.nn.functional.pad(used.sum(dim=1).cumsum(dim=0, dtype=torch.int32), (1, 0))
    outputs = forward(states[used][None], attention_mask=None, starts=starts, longest=longest, **words)
    padded = states.new_zeros(rows, longest, width)
    padded[used] = outputs.last_hidden_state[0].to(padded.dtype)
    outputs.last_hidden_state = padded
    return outputs


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text: ``[1, heads, tokens, width]`` each to ``[1, tokens, heads, width]``."""
    if not query.is_cuda:
        text = torch.bucketize(torch.arange(query.shape[2]), starts, right=True)
        within = text[:, None] == text[None, :]
        made = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=within, scale=scaling)
        return made.transpose(1, 2), None
    return _by_kernel(query, key, value, starts, longest, scaling)[None], None


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attend as a GPU does, to ``[tokens, heads, width]``. The kernel's own scale is not named: torch 2.10 cannot."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    other: dict[str, Any] = {} if scaling in (None, query.shape[3] ** -0.5) else {"scale": scaling}
    result: Any = varlen_attn(queries, keys, values, starts, starts, longest, longest, **other)
    return cast("torch.Tensor", result)
