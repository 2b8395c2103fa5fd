"""``python -m ensemble_assets.training.reranker``: makes the embedded CrossEncoder from a folder of training sets.

Parses the command, calls preparation and loop, writes the model folder and what it was made from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.loop import train
from ensemble_assets.training.preparation import Prepared, prepare
from ensemble_assets.training.recipe import EXCLUDED_SETS, RECIPES, Recipe, recipe
from ensemble_assets.training.student import build_student, save_student
from ensemble_assets.training.teacher import Teacher

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 (failed or stopped by --minutes) or 2 (bad usage)."""
    options = _parser().parse_args(arguments)
    try:
        return make_reranker(options)
    except EnsembleError as error:
        say(f"error: {error}")
        return 1


def say(line: str) -> None:
    """One progress line on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def make_reranker(options: argparse.Namespace) -> int:
    """Prepare, train, save; see ``_parser`` for the options."""
    torch.set_num_threads(options.threads)
    chosen = _with_steps(recipe(options.recipe), options.steps)
    body = locate(MODELS[chosen.body]).folder
    student = build_student(body, chosen, options.seed)
    teacher = Teacher(options.work / "encodings")
    began = time.monotonic()
    prepared = prepare(options.data, body, teacher, chosen, options.seed, say)
    say(f"prepared in {time.monotonic() - began:.0f} s")
    checkpoint = options.work / f"{chosen.name}-{options.seed}.safetensors"
    done = train(student, prepared, chosen, options.seed, checkpoint, say, seconds=options.minutes * 60)
    if done < chosen.steps:
        say(f"stopped by --minutes after step {done} of {chosen.steps}; the same command goes on from there")
        return 1
    save_student(student, body, options.output)
    record = training_record(chosen, options.seed, options.threads, prepared, teacher)
    (options.output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {options.output.name}: {chosen.steps} steps in {time.monotonic() - began:.0f} s")
    return 0


def training_record(chosen: Recipe, seed: int, threads: int, prepared: Prepared, teacher: Teacher) -> dict[str, Any]:
    """What the weights were made from: enough to make them again."""
    return {
        "recipe": chosen.as_json(),
        "seed": seed,
        "threads": threads,
        "teacher": teacher.identity(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "sets": prepared.counts,
        "excluded_sets": dict(EXCLUDED_SETS),
        "data_files_sha256": prepared.files,
    }


def _with_steps(row: Recipe, steps: int | None) -> Recipe:
    return row if steps is None else dataclasses.replace(row, steps=steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ensemble_assets.training.reranker", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets in BEIR layout")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--recipe", default="tiny-2x128", help=f"one of: {', '.join(RECIPES)} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="seed of everything drawn (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop after this long; the checkpoint stays and the same command goes on (default: no limit)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="encodings and checkpoints (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
