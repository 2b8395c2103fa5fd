"""Live progress of a run on standard error: one line when a stage begins, one when it ends."""

from __future__ import annotations

from typing import Any

from rich.console import Console

_MARKS = {"failed": "[red]failed[/red]", "feature_disabled": "[dim]off[/dim]", "fallback": "[yellow]fallback[/yellow]"}


class ConsoleProgress:
    """Prints stages as they begin and end, and keeps their records for the summary."""

    def __init__(self) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {}
        self._console = Console(stderr=True, highlight=False)

    def stage_started(self, stage: str, collection: str) -> None:
        """A stage begins."""
        self._console.print(f"  {collection}  {stage} …", style="dim")

    def stage_finished(self, stage: str, collection: str, facts: dict[str, Any]) -> None:
        """A stage ended."""
        self.records.setdefault(collection, []).append(facts)
        status = str(facts.get("status", "completed"))
        mark = _MARKS.get(status, f"[green]{status}[/green]")
        items = facts.get("items")
        count = f"{items} {facts.get('unit', 'items')}, " if items else ""
        self._console.print(f"  {collection}  {stage}: {mark}  {count}{facts.get('wall_seconds', 0):.1f} s")
        if status in {"failed", "fallback"} and facts.get("reason"):
            self._console.print(f"    {facts['reason']}", markup=False)
