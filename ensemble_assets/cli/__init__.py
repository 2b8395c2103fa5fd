"""The command line ``ensemble-assets``: commands that parse, call and print."""
