"""The promises of leases, ceiling and workers on real CUDA devices: ``make test-gpu``. Skipped where there is none."""
