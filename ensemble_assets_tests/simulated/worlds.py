"""Random worlds for the property tests: devices, models of memory, inputs, other programs, faults."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble_assets.compute.batching.dispatcher import Patience
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice
from ensemble_assets_tests.simulated.model import Faults, MemoryNeeds, SimulatedModel, Speed

MB = 1_000_000


@dataclass(frozen=True)
class World:
    """Everything that a simulated run needs."""

    lengths: NDArray[np.int64]
    model: SimulatedModel
    devices: tuple[SimulatedDevice, ...]
    settings: WorkerSettings

    @property
    def ceiling(self) -> Ceiling:
        return self.settings.ceiling

    @property
    def room(self) -> int:
        """Bytes for the weights and a batch on the worst device, when everybody else holds the most."""
        return min(map(self.room_on, self.devices))

    def room_on(self, device: SimulatedDevice) -> int:
        """Bytes for the weights and a batch on a device, when everybody else holds the most."""
        ceiling = self.ceiling.within(device.total_bytes)
        return min(ceiling.soft_bytes, ceiling.hard_bytes - ceiling.margin_bytes) - _taken(device)

    def needs_alone(self, row: int) -> float:
        """Bytes that a single row takes at most, weights included."""
        needs, length = self.model.needs, int(self.lengths[row])
        batch = needs.batch_bytes(length, length, padded=False) * (1 + needs.noise)
        device = self.devices[0]
        return (needs.weights + batch) * (1 + device.fragmentation) + device.granule_bytes


def _taken(device: SimulatedDevice) -> int:
    """The most bytes outside of our allocator."""
    late = sum(count for _, count in device.late_growth)
    others = max((count for _, count in device.others.changes), default=0)
    return device.context_bytes + device.lazy_bytes + device.reserved_bytes + late + others


@st.composite
def lengths(draw: st.DrawFn, most: int = 1500) -> NDArray[np.int64]:
    """Tokens per row, of several shapes."""
    n = draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    longest = draw(st.sampled_from([16, 64, 256, 512, 2048]))
    shape = draw(st.sampled_from(["constant", "uniform", "lognormal", "two humps", "one giant"]))
    values = {
        "constant": np.full(n, longest),
        "uniform": random.integers(1, longest + 1, n),
        "lognormal": np.clip(random.lognormal(np.log(longest / 3), 0.7, n), 1, longest),
        "two humps": np.where(random.random(n) < 0.5, longest, max(1, longest // 16)),
        "one giant": np.where(np.arange(n) == n // 2, longest * 4, longest // 2),
    }[shape]
    return np.asarray(values, np.int64)


@st.composite
def other_programs(draw: st.DrawFn, most: int) -> OtherProcesses:
    """Other programs: none, a small one that stays, or some that come and go."""
    kind = draw(st.sampled_from(["none", "none", "small", "any", "any"]))
    if kind == "none":
        return OtherProcesses()
    if kind == "small":
        return OtherProcesses(((0.0, draw(st.integers(0, most // 10))),))
    gaps = draw(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=6))
    at = np.cumsum(gaps)
    held = [draw(st.integers(0, most)) for _ in gaps]
    if draw(st.booleans()):
        held[-1] = 0  # gone in the end
    return OtherProcesses(tuple((float(when), amount) for when, amount in zip(at, held, strict=True)))


def faults() -> st.SearchStrategy[Faults]:
    """Faults; any of them may be absent."""
    count = st.one_of(st.none(), st.integers(0, 12))
    return st.builds(
        Faults,
        out_of_memory_from=st.one_of(st.none(), st.integers(500, 60_000)),
        out_of_memory_share=st.one_of(st.just(0.0), st.floats(0.0, 0.3)),
        lost_at=count,
        hangs_at=count,
        only_on=st.sets(st.sampled_from(["SIM-0", "SIM-1", "SIM-2"]), max_size=2).map(frozenset),
        raises_on=st.sets(st.integers(0, 50), max_size=3).map(frozenset),
        poison_rows=st.sets(st.integers(0, 50), max_size=2).map(frozenset),
        not_finite_on=st.just(frozenset()),
    )


@st.composite
def real_devices(draw: st.DrawFn, plain: SimulatedDevice, margin: int) -> SimulatedDevice:
    """What a real card adds to the arithmetic of a plain one."""
    late = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, margin * 3 // 2)), max_size=2))
    return replace(
        plain,
        granule_bytes=20 << 20,
        fragmentation=draw(st.floats(0.0, 0.15)),
        reserved_bytes=draw(st.integers(200, 1_000)) * MB,
        late_growth=tuple(late),
        racing=draw(st.sampled_from([0.0, 0.5])),
        failing=draw(st.sampled_from([0.0, 0.3])),
        raw_errors=draw(st.booleans()),
        lingers=draw(st.floats(0.0, 3.0)),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Anything goes: rows that can never fit or kill, devices that die, programs that take everything.

    Half of the devices are as real ones are: some memory is never free, kernels load late, the allocator fragments,
    readings race or fail, and what a dead worker held is freed late.
    """
    hard = draw(st.integers(2_000, 24_000)) * MB
    ceiling = Ceiling(hard, draw(st.floats(0.75, 0.95)), margin_bytes=draw(st.integers(64, 400)) * MB)
    context = draw(st.integers(100, 800)) * MB
    lazy = draw(st.integers(0, ceiling.margin_bytes // 2))
    real = draw(st.booleans())
    total = hard + draw(st.integers(0, 8_000)) * MB
    room = ceiling.soft_bytes - context - lazy
    weights = int(draw(st.floats(0.05, 0.6)) * max(room, 1))
    rows = draw(lengths())
    # a batch of so many tokens of the longest row would fill what is left
    full_tokens = draw(st.integers(200, 200_000))
    split = np.array([draw(st.floats(0.01, 1.0)) for _ in range(3)])
    token, square, row = split / split.sum() * max(room - weights, 1) / full_tokens
    longest = int(rows.max())
    unpadded = draw(st.sampled_from([0.0, 0.0, 1.0, 10.0])) * token / longest if real else 0.0
    needs = MemoryNeeds(weights, token, square / longest, row * longest, draw(st.floats(0.0, 0.05)), unpadded)
    plain = SimulatedDevice(total_bytes=total, context_bytes=context, lazy_bytes=lazy)
    device = draw(real_devices(plain, ceiling.margin_bytes)) if real else plain
    smallest = draw(st.sampled_from([1.0, 1.0, 0.4]))  # devices are of one size, or of several
    devices = tuple(
        replace(
            device,
            uuid=f"SIM-{index}",
            others=draw(other_programs(hard)),
            total_bytes=total if smallest == 1.0 else max(1_000 * MB, int(total * draw(st.floats(smallest, 1.0)))),
        )
        for index in range(draw(st.integers(1, 3)))
    )
    sizes = SizeSettings(
        initial_tokens=draw(st.sampled_from([256, 1024, 4096])),
        saturation_tokens=draw(st.sampled_from([1, 4096, 16384])),
        max_tokens=draw(st.sampled_from([None, None, 8192])),
        max_rows=draw(st.sampled_from([None, None, 64])),
    )
    settings = WorkerSettings(PlannerSettings(sizes), ceiling, Patience(memory=30, batch=600, measure=0.5))
    speed = Speed(20_000.0, 0.01)
    if real:
        speed = replace(
            speed,
            start=draw(st.floats(0.0, 8.0)),
            load=draw(st.floats(0.0, 30.0)),
            shape=draw(st.sampled_from([0.0, 0.06])),
            steady=5.0,
            fallen=draw(st.floats(1.0, 3.0)),
            refusal=draw(st.floats(0.0, 1.0)),
        )
    model = SimulatedModel(needs, speed, draw(faults()), draw(st.integers(0, 999)))
    return World(rows, model, devices, settings)


@st.composite
def unequal_worlds(draw: st.DrawFn) -> World:
    """Cards of several sizes, and nothing that goes wrong but rows that do not fit."""
    world = draw(worlds())
    devices = draw(
        st.permutations([replace(device, others=OtherProcesses(), late_growth=()) for device in world.devices])
    )
    small = replace(
        devices[0], uuid="SIM-S", total_bytes=max(1_000 * MB, int(devices[0].total_bytes * draw(st.floats(0.3, 0.9))))
    )
    first = draw(st.booleans())
    model = replace(world.model, faults=Faults())
    return replace(world, devices=(small, *devices) if first else (*devices, small), model=model)


@st.composite
def steady_worlds(draw: st.DrawFn) -> World:
    """Much work, nobody else, no faults: the memory is what limits batches once sizes are known."""
    hard = draw(st.integers(4_000, 24_000)) * MB
    ceiling = Ceiling(hard, 0.9, margin_bytes=draw(st.integers(128, 300)) * MB)
    context = draw(st.integers(200, 800)) * MB
    room = ceiling.soft_bytes - context
    weights = int(draw(st.floats(0.05, 0.6)) * room)
    per_batch = draw(st.integers(24, 160))  # rows of mean length that fill the device
    mean = draw(st.sampled_from([64, 256, 512]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.floats(0.0, 0.6))
    rows = np.clip(random.lognormal(np.log(mean), spread, per_batch * 225), 4, 4 * mean).astype(np.int64)
    split = np.array([draw(st.floats(0.01, 1.0)) for _ in range(3)])
    token, square, row = split / split.sum() * (room - weights) / (per_batch * mean)
    needs = MemoryNeeds(weights, token, square / mean, row * mean, draw(st.floats(0.0, 0.03)))
    devices = tuple(
        SimulatedDevice(uuid=f"SIM-{index}", total_bytes=hard + 4_000 * MB, context_bytes=context)
        for index in range(draw(st.integers(1, 4)))
    )
    sizes = SizeSettings(initial_tokens=draw(st.sampled_from([512, 4096])), saturation_tokens=1)
    settings = WorkerSettings(PlannerSettings(sizes), ceiling)
    return World(rows, SimulatedModel(needs, seed=draw(st.integers(0, 999))), devices, settings)


@st.composite
def troubled_steady_worlds(draw: st.DrawFn) -> World:
    """Much work on devices that refuse batches from some size on, or now and then for no reason."""
    world = draw(steady_worlds())
    needs, mean = world.model.needs, int(world.lengths.mean())
    full_tokens = (world.room - needs.weights) / (needs.batch_bytes(mean, mean) / mean)
    faults = draw(
        st.one_of(
            st.builds(Faults, out_of_memory_from=st.floats(0.3, 1.0).map(lambda share: int(share * full_tokens) + 1)),
            st.builds(Faults, out_of_memory_share=st.floats(0.0, 0.005)),
        )
    )
    return replace(world, model=replace(world.model, faults=faults))
