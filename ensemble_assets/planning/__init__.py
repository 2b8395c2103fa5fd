"""Predict how long a run takes on this machine."""
