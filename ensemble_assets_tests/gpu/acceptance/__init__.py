"""One run that holds every promise about a GPU on a real card, or on a simulated one: ``docs/gpu.md``, "Acceptance"."""
