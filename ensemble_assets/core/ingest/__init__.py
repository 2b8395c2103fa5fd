"""Readers of chunk files: what lies in a collection's folder becomes raw records, with everything odd counted.

``formats`` knows the formats and picks the reader, ``files`` finds and opens files, ``chunk_files`` and
``keyed_records`` read them, ``json_values`` parses and writes JSON, ``records`` holds the policy table and the report.
Making rows of records is ``core.chunks``.
"""
