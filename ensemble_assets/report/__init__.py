"""Show a run on one self-contained HTML page made from its bundle: numbers, fixed words and model names."""
