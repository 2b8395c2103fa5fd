"""``ensemble-assets upload BUNDLE``: a bundle into Qdrant, embedded storage unless a server is named."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.read.qdrant import connect, describe, upload_bundle
from ensemble_assets.settings import resolve
from ensemble_assets.settings.sources import process_environment


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--url", help="Server, such as http://localhost:6333.")
@click.option("--api-key", help="Of the server; better given as QDRANT_API_KEY.")
@click.option("--path", help="Folder of embedded storage; <output_dir>/.qdrant if neither is given.")
@click.option("--collection", help="Name in Qdrant; <collection>_v4_<primary model> if not given.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), help="Points per request.")
def upload(
    bundle: Path,
    url: str | None,
    api_key: str | None,
    path: str | None,
    collection: str | None,
    batch_size: int | None,
) -> int:
    """Upload BUNDLE into Qdrant, then check that counts match and that a chunk finds itself.

    Running it again changes nothing; after an interruption it goes on where it was.
    """
    if url and path:
        raise SettingsError("--url and --path: give one of them, a server or a folder")
    settings = resolve().settings
    options = settings.qdrant
    try:
        opened = open_bundle(bundle)
    except ArtefactError as error:
        raise SettingsError(str(error)) from None
    server = url or ("" if path else options.url)
    folder = path or options.path or str(Path(settings.paths.output_dir) / ".qdrant")
    client = connect(server, folder, api_key or process_environment().get("QDRANT_API_KEY"))
    try:
        uploaded = upload_bundle(
            opened, client, collection or options.collection, batch_size or options.batch_size, _show_progress
        )
    finally:
        client.close()
    click.echo(describe(uploaded))
    return 0


def _show_progress(done: int) -> None:
    click.echo(f"\r{done} points", nl=False, err=True)
