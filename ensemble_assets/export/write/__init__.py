"""Write a bundle: the v4.0 files and the additive v4.1 layer."""
