"""Deployments: asked for, under way, arrived or failed."""

from __future__ import annotations

from tieline.sdk import (
    Category,
    Change,
    Document,
    Entity,
    Event,
    Evidence,
    Failing,
    Input,
    Severity,
)

from .repository import Repository, actor

_OUTCOMES = {"success": "succeeded", "failure": "failed", "error": "failed"}
_SEVERITIES = {"succeeded": Severity.INFO, "failed": Severity.ERROR, "progressed": Severity.DEBUG}


class Deployment:
    """What both kinds of delivery say of the deployment itself."""

    def __init__(self, body: Document) -> None:
        self.repository = Repository(body)
        found = body.at("deployment")
        self.id = found.need_number("id")
        self.sha = found.need_text("sha")
        self.ref = found.text("ref")
        self.task = found.text("task")
        self.environment = found.need_text("environment")
        self.created_at = found.time("created_at")
        self.description = found.text("description")

    @property
    def key(self) -> str:
        return f"{self.repository.key}/deployments/{self.id}"

    @property
    def track(self) -> str:
        """What follows one after another: the deployments of one environment."""
        return f"{self.repository.key}/environments/{self.environment}"

    @property
    def url(self) -> str:
        return f"{self.repository.url}/deployments"

    def entities(self, body: Document) -> list[Entity]:
        name = self.repository.name
        return [
            Entity("deployment", f"{name}/deployments/{self.id}", self.description, self.url).subject(),
            Entity("environment", self.environment),
            self.repository.entity,
            self.repository.commit(self.sha),
            *actor(body),
        ]

    def evidence(self) -> list[Evidence]:
        return [
            Evidence("deployment", self.url, f"Deployments of {self.repository.name}"),
            Evidence("commit", self.repository.commit_url(self.sha), "What was deployed"),
        ]


def created(body: Document, _: Input) -> Event:
    deployment = Deployment(body)
    return Event(
        type="github.deployment.created",
        title=f"Deployment of {deployment.repository.name}@{_short(deployment)} to {deployment.environment} began",
        external_key=f"{deployment.key}/created",
        ordering_key=deployment.track,
        category=Category.DELIVERY,
        occurred_at=deployment.created_at,
        entities=deployment.entities(body),
        evidence=deployment.evidence(),
        attributes={"ref": deployment.ref, "task": deployment.task, "environment": deployment.environment},
        change=Change(kind=Change.Kind.DEPLOYMENT, began_at=deployment.created_at),
    )


def progressed(body: Document, _: Input) -> Event:
    deployment = Deployment(body)
    status = body.at("deployment_status")
    state = status.need_text("state")
    what = _OUTCOMES.get(state, "progressed")
    at = status.time("created_at")
    words = {"succeeded": "succeeded", "failed": "failed"}.get(what, f"is {state.replace('_', ' ')}")
    return Event(
        type=f"github.deployment.{what}",
        title=f"Deployment of {deployment.repository.name}@{_short(deployment)} to {deployment.environment} {words}",
        external_key=f"{deployment.key}/statuses/{status.need_number('id')}",
        ordering_key=deployment.track,
        category=Category.DELIVERY,
        severity=_SEVERITIES[what],
        occurred_at=at,
        entities=deployment.entities(body),
        evidence=[
            *deployment.evidence(),
            Evidence("log", status.text("log_url") or status.text("target_url"), "What the deployer said"),
        ],
        attributes={
            "state": state,
            "description": status.text("description"),
            "environment": deployment.environment,
            "environment_url": status.text("environment_url"),
        },
        change=Change(kind=Change.Kind.DEPLOYMENT, began_at=deployment.created_at, ended_at=at)
        if what == "succeeded"
        else None,
        # All deployments of one environment share the key: the next success ends what a failure began.
        failing=None
        if what == "progressed"
        else Failing(key=deployment.track, recovered=what == "succeeded", onset_at=at),
    )


def _short(deployment: Deployment) -> str:
    return deployment.ref if deployment.ref and len(deployment.ref) < 40 else deployment.sha[:7]
