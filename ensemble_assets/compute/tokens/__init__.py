"""Turn texts into token ids, windows and padded arrays."""
