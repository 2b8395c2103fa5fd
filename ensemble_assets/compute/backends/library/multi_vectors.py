"""Run ColBERT models, which make a vector for each token by a head of their own.

sentence-transformers' ``MultiVectorEncoder`` says which tokens are compared: not the punctuation of a document, but
those that expand a query.
"""

from __future__ import annotations

import torch

from ensemble_assets.compute.backends.library.forward import LibraryForward
from ensemble_assets.compute.backends.library.model import Features, Task, used_positions
from ensemble_assets.compute.backends.token_states import LEFT_OUT, SCALE, STATE


class MultiVectorForward(LibraryForward):
    """A model whose token vectors are compared, with their lengths."""

    def run(self, features: Features, task: Task) -> dict[str, torch.Tensor]:
        """Make the vectors of a padded batch's tokens, on the device.

        The vectors of a row come first, however many the model makes of its tokens; the other places are ``LEFT_OUT``.
        """
        used = used_positions(features)
        columns = torch.arange(used.shape[1], device=used.device)
        first, last = used.int().argmax(dim=1), (used * columns).amax(dim=1)
        places = columns <= torch.where(used.any(dim=1), last - first, -1)[:, None]
        made = self._model.run(features, task)
        compared = made["attention_mask"].bool()
        vectors = made["token_embeddings"][compared].float()
        largest = vectors.abs().amax(dim=1)
        filled = (columns < compared.sum(dim=1, keepdim=True))[places]
        states = torch.zeros(len(filled), vectors.shape[1], dtype=torch.float16, device=used.device)
        scales = torch.full((len(filled),), LEFT_OUT, device=used.device)
        states[filled] = (vectors / largest[:, None]).nan_to_num().half()
        scales[filled] = largest
        return {STATE: states, SCALE: scales}
