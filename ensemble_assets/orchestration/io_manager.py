"""Publish the sealed artefacts of assets, and load those of their inputs."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import ExportRecord
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.orchestration.resources import SettingsForm
from ensemble_assets.pipeline.from_settings import open_store


class ArtefactIOManager(dg.IOManager):
    """Store of one run's artefacts: an output becomes the partition's current version, an input is the current one."""

    def __init__(self, settings: SettingsForm) -> None:
        self.settings = settings

    def handle_output(self, context: dg.OutputContext, obj: Artefact) -> None:
        """Make the sealed version current, in one atomic replacement."""
        if not isinstance(obj, Artefact):
            raise ArtefactError(
                f"{context.asset_key.to_user_string()} returned {type(obj).__name__}; assets hand on sealed artefacts"
            )
        store = open_store(self.settings.resolved().settings)
        store.publish(_collection(context), context.asset_key.path[-1], obj)
        beside = obj.record.bytes if isinstance(obj.record, ExportRecord) else 0  # the bundle lies in the output folder
        size = obj.size_bytes + beside
        context.add_output_metadata({"dagster/size_bytes": size, "artefact_version": obj.version})

    def load_input(self, context: dg.InputContext) -> Artefact:
        """Load the current version of the upstream asset, verified."""
        store = open_store(self.settings.resolved().settings)
        return store.load(_collection(context), context.asset_key.path[-1])


@dg.io_manager(required_resource_keys={"settings"}, description="Sealed artefacts: .npy, Parquet and JSON, by version.")
def artefacts(context: dg.InitResourceContext) -> ArtefactIOManager:
    """Make the IO manager of the code location; the settings name its folder."""
    return ArtefactIOManager(context.resources.settings)


def _collection(context: dg.OutputContext | dg.InputContext) -> str:
    keys = list(context.asset_partition_keys)
    if len(keys) != 1:
        raise ArtefactError(
            f"{context.asset_key.to_user_string()}: one run handles one collection, this one has {len(keys)}. "
            "Launch backfills with one run per partition"
        )
    return keys[0]
