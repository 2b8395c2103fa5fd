"""Read the chunk files of a collection's folder into raw records, and count everything odd.

``formats`` picks the reader, ``layouts`` knows the names of published data sets, ``input_files`` finds and opens files,
``legacy_chunk_files`` and ``keyed_records`` read chunks, ``table_rows`` reads tables. ``fields`` tells text, title, id
and metadata of a record apart, ``chunk_ids`` makes ids usable and unique, ``json_values`` parses and writes JSON,
``read_report`` has the report.

Imperfect but usable input is counted, with its reason in the table ``read_report.REASONS``. The following input is
refused (``InputError`` with file and line, record or byte), for these reasons:

========================================  ========================================================================
broken JSON or Parquet, not UTF-8         the rest of the file is unknown: skipping it would lose chunks uncounted
empty ``*_chunks.json`` or ``*.parquet``  no valid file is empty; an interrupted copy may be
wrong types, no text                      the name promises another format; guessing would embed something else
over 4300 digits, over 100 levels         no reader of the bundle could take it
a record over 64 MB, a file over 2 GB     it is a book or a wrong file, and it would exhaust memory
cannot be opened, no regular file         its content is unknown
a link out of the folder                  a corpus from elsewhere must not read this machine's other files
a chunk file linked to nowhere            its chunks are missing
several formats in one folder             usually the same documents twice; ``chunks.format`` chooses
no chunk at all                           the path is usually wrong
========================================  ========================================================================
"""
