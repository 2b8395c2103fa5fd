"""Read the linear layer that some encoders have over their token states for late interaction, as bge-m3 does."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import HEAD, ModelFiles

Head = tuple[NDArray[np.float32], NDArray[np.float32]]


@lru_cache(maxsize=2)
def load_head(files: ModelFiles) -> Head | None:
    """Load matrix ``[out, hidden]`` and bias ``[out]``; None where the model has no such layer, or it may not be read.

    Raises:
        ModelUnavailableError: if the file holds something else.
    """
    if not files.head:
        return None
    import torch

    try:
        stored = torch.load(files.folder / HEAD, map_location="cpu", weights_only=True)
        matrix, bias = (stored[name].float().numpy() for name in ("weight", "bias"))
    except Exception as error:  # a pickle of whatever kind
        raise ModelUnavailableError(
            f"{files.folder.name}: {HEAD} is no linear layer ({type(error).__name__}). Fetch it again, or remove it"
        ) from error
    return matrix, bias
