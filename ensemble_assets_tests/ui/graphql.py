"""What the browser asks Dagster for, asked directly: launch runs, look at assets, runs and checks."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

LOCATION, REPOSITORY = "ensemble_assets", "__repository__"

_LAUNCH = """mutation($selector: JobOrPipelineSelector!, $config: RunConfigData, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {selector: $selector, runConfigData: $config, executionMetadata: {tags: $tags}}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message errorChain { error { message } } }
    ... on RunConfigValidationInvalid { errors { message } }
  } }"""
_ADD = """mutation($selector: RepositorySelector!, $key: String!) {
  addDynamicPartition(repositorySelector: $selector, partitionsDefName: "collection", partitionKey: $key) {
    __typename } }"""
_RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""
_ASSETS = """query { assetNodes { assetKey { path } groupName partitionDefinition { name }
  latestMaterializationByPartition { timestamp metadataEntries { label ... on IntMetadataEntry { intValue }
                                                                   ... on FloatMetadataEntry { floatValue } } } } }"""
_CHECKS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status
    evaluation { success severity } } } } } } } }"""


@dataclass(frozen=True)
class Dagster:
    """A webserver."""

    url: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of the answer.

        Raises:
            AssertionError: with the server's errors.
        """
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:  # an answer that holds an error of the code location has status 500
            found = json.loads(error.read())
        assert "errors" not in found, found["errors"]
        return dict(found["data"])

    def add_collection(self, name: str) -> None:
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
        self.ask(_ADD, selector=selector, key=name)

    def launch(self, job: str, collection: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer: a run's id, or why there is none."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": job}
        tags = [{"key": "dagster/partition", "value": collection}]
        return dict(self.ask(_LAUNCH, selector=selector, config=config or {}, tags=tags)["launchRun"])

    def wait_for_run(self, run_id: str, seconds: float = 900) -> str:
        """The run's state when it is over.

        Raises:
            TimeoutError: if it goes on.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = str(self.ask(_RUN, id=run_id)["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(1)
        raise TimeoutError(f"the run was {status} after {seconds:.0f} s")

    def assets(self) -> dict[str, dict[str, Any]]:
        """Every asset by name, with its latest materialisations."""
        return {node["assetKey"]["path"][-1]: node for node in self.ask(_ASSETS)["assetNodes"]}

    def checks(self, asset: str) -> dict[str, dict[str, Any] | None]:
        """How each check of an asset ended last, by name."""
        node = self.ask(_CHECKS, key={"path": [asset]})["assetNodeOrError"]
        checks = node["assetChecksOrError"]["checks"]
        return {check["name"]: check["executionForLatestMaterialization"] for check in checks}
