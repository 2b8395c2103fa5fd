"""The gates of the export contract: pure functions from a bundle folder (and what it was made of) to a verdict.

Each gate streams the files it looks at and names the record and the key that is wrong. Dagster checks, the exporter and
the command line show the same verdicts; none of them is known here.
"""
