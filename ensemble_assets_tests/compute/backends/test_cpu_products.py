"""The precision of a CPU follows from measured rates, which are measured once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ensemble_assets.compute.backends import cpu_products as rates
from ensemble_assets.compute.backends.cpu_products import CpuProducts, cpu_products, settled_precision, stored_products

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)
pytestmark = pytest.mark.models


@pytest.mark.parametrize(
    ("products", "faster"),
    [
        (CpuProducts(100.0, 220.0), "bf16"),
        (CpuProducts(263.0, 148.0), "fp32"),  # a Xeon whose matrix units are hidden: bf16 in hardware, and slower
        (CpuProducts(100.0, 110.0), "fp32"),  # not worth the rounding
        (CpuProducts(100.0, 0.0), "fp32"),
    ],
)
def test_auto_is_the_faster_precision_and_a_named_one_is_meant(
    products: CpuProducts, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "cpu_products", lambda folder: products)
    assert settled_precision("auto", None) == faster
    assert [settled_precision(name, None) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_rates_are_measured_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored_products(tmp_path) is None
    first = cpu_products(tmp_path)
    assert first.fp32 > 1, "a CPU that multiplies a billion times a second"
    assert (first.bf16 > 0) == (rates._measured().bf16 > 0)
    monkeypatch.setattr(rates, "_measured", None)
    cpu_products.cache_clear()
    assert cpu_products(tmp_path) == stored_products(tmp_path) == first


def test_the_rates_of_another_version_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_products(tmp_path)
    monkeypatch.setattr(rates.metadata, "version", lambda name: "1.0")
    assert stored_products(tmp_path) is None
