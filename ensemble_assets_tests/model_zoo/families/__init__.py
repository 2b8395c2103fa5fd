"""Make the tiny models: vocabularies, random networks, and one builder per way of publishing a model."""
