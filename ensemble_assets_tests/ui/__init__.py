"""Tests and pictures of the Dagster UI in headless Chromium. Not part of ``make test``: see ``make test-ui``."""
