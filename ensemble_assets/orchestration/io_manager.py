"""The IO manager: publishes sealed artefacts and hands out verified handles. Arrays map, frames scan, nothing pickles.

What an artefact is and how it is stored is ``core.artefacts`` and ``core.artefact_store``.
"""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.orchestration.resources import SettingsForm
from ensemble_assets.pipeline.from_settings import open_store


class ArtefactIOManager(dg.IOManager):
    """Publishes a stage's sealed artefact as the partition's current version; loads the current version of an input."""

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
        context.add_output_metadata({"dagster/size_bytes": obj.size_bytes, "artefact_version": obj.version})

    def load_input(self, context: dg.InputContext) -> Artefact:
        """The current version of the upstream asset, verified."""
        store = open_store(self.settings.resolved().settings)
        return store.load(_collection(context), context.asset_key.path[-1])


@dg.io_manager(required_resource_keys={"settings"}, description="Sealed artefacts: .npy, Parquet and JSON, by version.")
def artefacts(context: dg.InitResourceContext) -> ArtefactIOManager:
    """The IO manager of the code location; where artefacts lie is a setting."""
    return ArtefactIOManager(context.resources.settings)


def _collection(context: dg.OutputContext | dg.InputContext) -> str:
    keys = list(context.asset_partition_keys)
    if len(keys) != 1:
        raise ArtefactError(
            f"{context.asset_key.to_user_string()}: one run handles one collection, this one has {len(keys)}. "
            "Launch backfills with one run per partition"
        )
    return keys[0]
