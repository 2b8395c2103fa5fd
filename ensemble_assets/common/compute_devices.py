"""Name the devices that a stage ran on: their kind and their UUIDs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

DeviceKind = Literal["none", "cpu", "cuda", "cluster"]
"""none: nothing ran; cpu: this host's processor; cuda: NVIDIA GPUs; cluster: nodes of a Ray cluster."""


@dataclass(frozen=True)
class UsedDevices:
    """The devices of one run of a stage, which are of one kind.

    ``uuids`` are of GPUs (``GPU-...``, ``MIG-...``) in the order of first use; empty for a CPU.
    """

    kind: DeviceKind = "none"
    uuids: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the stage ran on GPUs."""
        return self.kind == "cuda"

    @property
    def label(self) -> str:
        """Words for manifests and reports: the UUIDs joined by commas, else the kind."""
        return ",".join(self.uuids) or self.kind

    def as_json(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"kind": self.kind, "uuids": list(self.uuids)}

    @classmethod
    def from_json(cls, value: Any) -> UsedDevices:
        """Read ``as_json``, or the label that versions before 0.2 stored; ``ValueError`` for anything else."""
        if value in get_args(DeviceKind):
            return cls(value)
        if isinstance(value, str):
            return cls("cuda", tuple(value.split(",")))
        if isinstance(value, dict) and value.get("kind") in get_args(DeviceKind):
            return cls(value["kind"], tuple(str(uuid) for uuid in value.get("uuids", ())))
        raise ValueError(f"not a device record: {value!r:.80}")


def merge_devices(parts: Iterable[UsedDevices]) -> UsedDevices:
    """Combine the devices of several runs of one stage, in the order of first use."""
    used = [part for part in parts if part.kind != "none"]
    if not used:
        return UsedDevices()
    return UsedDevices(used[0].kind, tuple(dict.fromkeys(uuid for part in used for uuid in part.uuids)))
