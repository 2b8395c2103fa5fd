#!/bin/sh
# Two minutes: a run, one changed chunk, a question, what reranking did, a new folder.
# Usage: docs/demo.sh [WORK]   takes ensemble-assets from .venv, if make install made that, else from the PATH
set -eu
[ ! -x .venv/bin/ensemble-assets ] || PATH=$PWD/.venv/bin:$PATH
ENSEMBLE=${ENSEMBLE:-ensemble-assets}
PYTHON=${PYTHON:-python3}
WORK=${1:-demo}
RUN="--chunked-dir $WORK/corpora --output-dir $WORK/output ${OPTIONS:-}"

say() { printf '\n== %s\n' "$1"; }

mkdir -p "$WORK/corpora"
[ -e "$WORK/corpora/pydoc" ] || cp -r "$($PYTHON -c 'import ensemble_assets.sample as s; print(s.SAMPLE_FOLDER)')/pydoc" "$WORK/corpora"

say "The first run: everything is computed"
$ENSEMBLE run $RUN --collections pydoc

say "One chunk changes, and the same command takes seconds"
"$PYTHON" - "$WORK/corpora/pydoc" <<'PYTHON'
import json, pathlib, sys
path = sorted(pathlib.Path(sys.argv[1]).glob("*_chunks.json"))[0]
chunks = json.loads(path.read_text())
chunks[0]["text"] = "This sentence is new. " + chunks[0]["text"]
path.write_text(json.dumps(chunks))
PYTHON
$ENSEMBLE run $RUN --collections pydoc

say "Ask it"
$ENSEMBLE search "$WORK/output/pydoc" "${QUESTION:-can a list be the key of a dictionary?}" --top 3 --explain

say "What reranking changed"
$ENSEMBLE show "$WORK/output/pydoc"

say "A new folder is a new collection"
mkdir -p "$WORK/corpora/notes"
cat > "$WORK/corpora/notes/notes_chunks.json" <<'JSON'
[{"text": "The harbour opens at six. Boats longer than twenty metres need a pilot.",
  "metadata": {"chunk_id": "n1", "heading_text": "Opening hours of the harbour"}},
 {"text": "The orchard sells apples from September on. Bring your own basket.",
  "metadata": {"chunk_id": "n2", "heading_text": "Buying apples at the orchard"}}]
JSON
$ENSEMBLE run $RUN --collections notes
$ENSEMBLE search "$WORK/output/notes" "when can I buy fruit?" --top 1

say "In the browser: make ui; report: $WORK/output/pydoc.report.html; what was written: $ENSEMBLE clean --output-dir $WORK/output"
