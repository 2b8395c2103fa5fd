"""Spans, metrics and their exporters, behind one allow-list. Carries ids, counts and durations, never text."""
