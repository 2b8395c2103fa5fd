"""Search everything that a run wrote for the text of its queries."""
