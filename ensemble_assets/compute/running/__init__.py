"""Run a table of rows on leased devices, in this process or in worker processes, and reuse earlier rows."""
