"""Write ``docs/configuration.md`` from the options.

``python -m ensemble_assets_tests.tools.configuration_page`` prints it.
A test compares the file with this output, so the page cannot drift from the program.
"""

from __future__ import annotations

import sys
from typing import Any

from ensemble_assets.settings.option_table import Option, options

_HEAD = """\
# Configuration

Made by `python -m ensemble_assets_tests.tools.configuration_page`; do not edit by hand.

Every option has a default, so a run needs no configuration. Values come from these layers; later layers win:

1. the default below;
2. `ensemble.yaml` in the working directory, or the file that `EMBEDDER_CONFIG` names (nested sections or dotted keys);
3. `.env` in the working directory;
4. the environment;
5. the run configuration (Dagster's Launchpad) or the command line (`--set key=value` and the named flags).

The manifest (`processing_summary.json`) lists the values and their sources under `feature_toggles.provenance`. A value
that is not accepted is an error, even if a later layer sets another one. The error names the source, the value and the
accepted values. For an unknown option it suggests the nearest name.

Sparse vectors and reranking are **on** unless one of the layers switches them off. A stage that is off still
materialises an empty artefact marked `feature_disabled`, so that the assets after it run.

The named flags of `ensemble-assets run` are short for options: `--chunked-dir` (`paths.chunked_dir`), `--output-dir`
(`paths.output_dir`), `--queries` (`queries.file`), `--qrels` (`queries.qrels`), `--split` (`queries.split`),
`--profile` (`models.profile`), `--ensemble-models` (`models.ensemble`), `--sparse-models` (`models.sparse`),
`--enable-rerank/--disable-rerank` (`enable_rerank`) and `--enable-sparse/--disable-sparse` (`enable_sparse`).
"""


def page() -> str:
    """The whole page as Markdown."""
    sections: dict[str, list[str]] = {}
    for key, option in options().items():
        sections.setdefault(key.rpartition(".")[0] or "toggles", []).append(_row(key, option))
    tables = [
        f"\n## {name}\n\n| option | default | accepted | environment | meaning |\n|---|---|---|---|---|\n"
        + "".join(rows)
        for name, rows in sections.items()
    ]
    return _HEAD + "".join(tables)


def _row(key: str, option: Option) -> str:
    default = _shown(option.field.default)
    return f"| `{key}` | {default} | {option.accepted} | `{option.variable}` | {option.field.description} |\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`" if value not in ("", ()) else ""


if __name__ == "__main__":
    sys.stdout.write(page())
