"""Run tables of rows on the nodes of a Ray cluster."""
