"""Share options and arguments between commands, and turn them into settings and collections."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.common.errors import ArtefactError, InputError, SettingsError
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.sample import SAMPLE_FOLDER
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import cache_folder

if TYPE_CHECKING:
    from ensemble_assets.collection.folders import Collection

_FLAG_KEYS = {
    "chunked_dir": "paths.chunked_dir",
    "output_dir": "paths.output_dir",
    "queries": "queries.file",
    "qrels": "queries.qrels",
    "split": "queries.split",
    "profile": "models.profile",
    "ensemble_models": "models.ensemble",
    "sparse_models": "models.sparse",
    "enable_rerank": "enable_rerank",
    "enable_sparse": "enable_sparse",
    "method": "fusion.method",
}
"""Settings key of every flag that sets an option."""

Decorator = Callable[[Any], Any]

SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any option by its dotted key.")
JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON on standard output.")
FOLDER = click.argument("folder", required=False)
"""The folder of the collections, as with ``--chunked-dir``; see ``one_folder``."""
CHUNKED_DIR = click.option(
    "--chunked-dir", metavar="DIR", help="Folder with one sub-folder of chunk files per collection."
)
COLLECTIONS = click.option("--collections", help="Names, comma-separated; all sub-folders if not given.")
SAMPLE = click.option("--sample", is_flag=True, help="Use the sample collection that ships with the package.")
PROFILE = click.option("--profile", help="Models: embedded, embedded-multilingual, kaggle-t4x2 or custom.")
DENSE_MODELS = click.option("--ensemble-models", help="Dense models, comma-separated; the first is the primary one.")
SPARSE_MODELS = click.option("--sparse-models", help="Sparse models, comma-separated.")
TARGET = click.argument("target")
"""A collection that was run, or its bundle's folder; see ``locate_target``."""
TARGET_OUTPUT = click.option("--output-dir", metavar="DIR", help="Folder of TARGET's bundle, if TARGET is a name.")


_WHOLE_SENTENCE = 200
"""Characters of the longest sentence on a command; lines are broken and not cut off."""


class Commands(click.Group):
    """Commands that ``--help`` lists with whole sentences."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every command with the whole first sentence of its help."""
        rows = [(name, self.commands[name].get_short_help_str(_WHOLE_SENTENCE)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def with_options(*decorators: Decorator) -> Decorator:
    """Add options to a command; help lists them in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def option_overrides(flags: dict[str, Any], assignments: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Give option values by dotted key, and the name of each value's source. A flag wins over an assignment.

    A flag of None was not given. An assignment without ``=`` and an unknown key are a ``SettingsError``.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE, such as rerank.depth=50")
        values[key.strip()] = value.strip()
        sources[key.strip()] = f"--set {key.strip()}"
    for flag, value in flags.items():
        if value is not None:
            values[_FLAG_KEYS[flag]] = value
            sources[_FLAG_KEYS[flag]] = _flag_name(flag, value)
    resolve(values, override_sources=sources)  # an unknown option is an error here, before anything is read
    return values, sources


def _flag_name(flag: str, value: Any) -> str:
    if flag.startswith("enable_"):
        stage = flag.removeprefix("enable_")
        return f"--enable-{stage}" if value else f"--disable-{stage}"
    return "--" + flag.replace("_", "-")


def resolve_flags(flags: dict[str, Any], assignments: tuple[str, ...], *, sample: bool = False) -> Settings:
    """Resolve the settings of a command; ``sample`` reads the sample collection instead of ``--chunked-dir``."""
    overrides, sources = option_overrides(
        {**flags, "chunked_dir": str(SAMPLE_FOLDER)} if sample else flags, assignments
    )
    return resolve(overrides, override_sources=sources).settings


def one_folder(folder: str | None, chunked_dir: str | None) -> str | None:
    """Give the folder of the collections, which may be named as an argument or by ``--chunked-dir``, but not both."""
    if folder and chunked_dir:
        raise SettingsError(f"FOLDER and --chunked-dir are the same; give {folder} or {chunked_dir}")
    return folder or chunked_dir


def split_names(names: str | None) -> tuple[str, ...]:
    """Split a comma-separated list of names; () for None."""
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def choose_collections(settings: Settings, names: tuple[str, ...], *, has_sample: bool = True) -> list[Collection]:
    """Find collections below ``paths.chunked_dir``; all of them if there are no names. Folders left out are shown.

    None at all, or an unknown name, is a ``SettingsError``, which proposes ``--sample`` where the command has it.
    """
    from ensemble_assets.collection.folders import choose, discover

    root = Path(settings.paths.chunked_dir)
    with wrong_name_is_usage_error():
        discovered = discover(root)
    refused = [] if names else list(discovered.refused.values())
    for error in [*refused, *(() if names else discovered.uncut.values())]:
        click.echo(f"Left out: {error}", err=True)
    if refused and not discovered.collections:
        raise refused[0]
    if not (discovered.collections or discovered.refused):
        sample = ", or --sample" if has_sample else ""
        raise SettingsError(f"{root}: has no folder with chunk files. {_WHERE_CHUNKS_ARE}{sample}")
    with wrong_name_is_usage_error():
        return choose(discovered, names)


def locate_target(
    target: str, output_dir: str | None, assignments: tuple[str, ...], **flags: Any
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Give the collection that TARGET names, and option values with their sources; ``flags`` set further options.

    TARGET is the name of a collection that was run, or the folder of its bundle, whose parent is the output folder.
    """
    folder = Path(target)
    if (folder / MANIFEST_NAME).is_file():  # a folder with a manifest is a bundle
        bundle = folder.resolve()
        target, output_dir = bundle.name, output_dir or str(bundle.parent)
    overrides, sources = option_overrides({"output_dir": output_dir, **flags}, assignments)
    return target, overrides, sources


def require_run(settings: Settings, collection: str) -> None:
    """Refuse a collection that was not run, before anything heavy is imported."""
    from ensemble_assets.artefacts.published import may_be_published
    from ensemble_assets.export.write.names import collection_folder
    from ensemble_assets.settings.default_paths import artefact_base

    if not may_be_published(artefact_base(settings.paths), collection, "reranked_candidates"):
        if (Path(settings.paths.output_dir) / collection_folder(collection) / MANIFEST_NAME).is_file():
            raise SettingsError(
                f"{collection}: its artefacts are not in {artefact_base(settings.paths)}, and a bundle has no "
                "texts of queries. Go to where it was run, or run it again"
            )
        raise SettingsError(
            f"{collection}: was not run into {settings.paths.output_dir}. "
            "Give the folder of a bundle, or a collection's name and --output-dir, and run it first"
        )


_WHERE_CHUNKS_ARE = (
    "Give --chunked-dir the folder that has one folder per collection, each with *_chunks.json, corpus.jsonl, JSONL or "
    "Parquet files (documents become chunks with ensemble-assets chunk)"
)


@contextmanager
def wrong_name_is_usage_error() -> Iterator[None]:
    """Exit with code 2 instead of 1 if a file or folder that the user named is not there or is no bundle."""
    try:
        yield
    except (ArtefactError, InputError) as error:
        raise SettingsError(str(error)) from None


@contextmanager
def importing() -> Iterator[None]:
    """Import much without the garbage collector, which would look through all modules again and again in vain.

    It takes a sixth of the time of Dagster's imports. Imported modules stay out of later collections too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def require_output(settings: Settings) -> None:
    """Make the output folder, and refuse one that cannot be written, before anything is read."""
    folder = Path(settings.paths.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written"
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if reason:
        raise SettingsError(f"paths.output_dir: {folder} is no folder for results ({reason}). Name another one")


def require_dagster_home(home: str | None) -> None:
    """Refuse a DAGSTER_HOME that is no folder: Dagster makes none."""
    if home and not Path(home).is_dir():
        raise SettingsError(
            f"environment variable DAGSTER_HOME: {home} is no folder. Make it, or unset the variable: a run from the "
            "command line then keeps no history"
        )


def require_files(settings: Settings) -> None:
    """Refuse a queries, qrels or weights file that is not there, before anything is read."""
    for key, path in (("queries", settings.queries.file), ("qrels", settings.queries.qrels)):
        if path and not Path(path).is_file():
            raise SettingsError(f"--{key} {path}: there is no such file")
    if settings.fusion.weights_file:
        from ensemble_assets.retrieval.fitted_weights import require_weights_file

        require_weights_file(Path(settings.fusion.weights_file))


def require_store(settings: Settings) -> None:
    """Refuse a URL of artefacts that cannot be opened, before anything is read."""
    if "://" in settings.paths.artifacts_dir:
        from ensemble_assets.artefacts.store import artefact_store

        artefact_store(settings.paths.artifacts_dir, cache_folder(settings.paths))
