"""What GitHub sends, by its kind. Each kind has a module that knows nothing of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tieline.sdk import Document, Event, Input, Instance, Skip

from . import deployments, pull_requests, pushes

KINDS: Mapping[str, Callable[[Document, Input], Event | Skip]] = {
    "push": pushes.pushed,
    "pull_request": pull_requests.changed,
    "deployment": deployments.created,
    "deployment_status": deployments.progressed,
}


class GitHub:
    def transform(self, instance: Instance, delivery: Input) -> Event | Skip:
        kind = delivery.header("x-github-event") or delivery.event_type.partition(".")[0]
        if kind == "ping":
            return Skip("PING")
        if kind not in KINDS:
            return Skip("NOT_HANDLED")
        body = delivery.json()
        wanted = instance.settings.get("repositories")
        if wanted is not None and body.need_text("repository", "full_name") not in wanted:
            return Skip("OTHER_REPOSITORY")
        return KINDS[kind](body, delivery)
