"""Bundles that databases and older programs load: the v4.0 writer and the additive v4.1 layer."""
