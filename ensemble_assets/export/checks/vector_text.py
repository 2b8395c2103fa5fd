"""How the vectors of every point are to be written: the text that the v4.0 writer makes of the arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.read.bundle_reader import Bundle, open_vectors, points
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.json_bytes import compact, float_rows


class VectorTexts:
    """The text of the object of vectors, row by row; ends early where an array does or holds no unit vectors.

    From the arrays that the bundle was made of where they are given, else from those in the bundle.

    Attributes:
        names: of the models, the primary one first.
        problem: a sentence on why there are no more texts, if not because the arrays end.
    """

    def __init__(self, bundle: Bundle, inputs: BundleInputs | None) -> None:
        self.problem = ""
        self.names: list[str] = []
        self._lists: Iterator[tuple[str, ...]] = iter(())
        try:
            if inputs is not None:
                self.names = [model.slug for model in inputs.dense]
                arrays = [model.vectors for model in inputs.dense]
            else:
                first = next(points(bundle), None)
                self.names = first.vector_names if first else []
                files = [bundle.names.vectors(), *map(bundle.names.vectors, self.names[1:])][: len(self.names)]
                arrays = [open_vectors(bundle.folder / file) for file in files]
        except ArtefactError as error:
            self.problem = str(error)
        except ValueError:
            self.problem = f"{bundle.names.of('qdrant.jsonl')}: broken vectors"
        else:
            rows = [float_rows(np.asarray(array), name) for array, name in zip(arrays, self.names, strict=True)]
            self._lists = zip(*rows, strict=False)
        self._keys = [compact(name) for name in self.names]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            lists = next(self._lists)
        except (ContractError, ValueError) as error:
            self.problem = str(error) if isinstance(error, ContractError) else "an array is no matrix of numbers"
            self._lists = iter(())
            raise StopIteration from None
        inside = ", ".join(f"{key}: {text}" for key, text in zip(self._keys, lists, strict=True))
        return f"{{{inside}}}".encode()
