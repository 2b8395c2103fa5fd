"""Questions to a finished bundle."""
