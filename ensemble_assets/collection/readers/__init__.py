"""Readers of chunk files: what lies in a collection's folder becomes raw records, with everything odd counted.

``formats`` knows the formats and picks the reader, ``files`` finds and opens files, ``chunk_files`` and
``keyed_records`` read them, ``ids`` makes ids usable and unique, ``json_values`` parses and writes JSON, ``records``
holds the report. Making rows of records is ``core.chunks``.

What is imperfect but usable is counted, with its reason in the table ``records.REASONS``. What is refused
(``InputError`` with file and line, record or byte), and why it is not skipped instead:

========================================  ========================================================================
broken JSON or Parquet, not UTF-8         the rest of the file is unknown: skipping it would lose chunks uncounted
empty ``*_chunks.json`` or ``*.parquet``  no valid file is empty; an interrupted copy is
wrong types, no ``text``                  the file is not what its name says; guessing would embed something else
the same given id, other content          judgements name one of the two, nobody knows which
over 4300 digits, over 100 levels         no reader of the bundle could take it
a record over 64 MB, a file over 2 GB     no chunk but a book or a wrong file; it would exhaust memory
cannot be opened, no regular file         nothing can be said about what is in it
a link out of the folder                  a corpus from elsewhere must not read this machine's other files
a chunk file linked to nowhere            its chunks are missing
several formats in one folder             mostly the same documents twice; ``chunks.format`` chooses
no chunk at all                           a run over nothing comes from a wrong path
========================================  ========================================================================
"""
