"""Pull requests, through their life: opened, updated, merged or closed, and all that happens in between."""

from __future__ import annotations

from datetime import datetime

from tieline.sdk import (
    Category,
    Change,
    Document,
    Entity,
    Event,
    Evidence,
    Input,
    ObjectVersion,
    Severity,
)

from .repository import Repository, actor

_VERBS = {
    "opened": "opened",
    "updated": "updated",
    "merged": "merged",
    "closed": "closed",
    "reopened": "reopened",
}


def changed(body: Document, delivery: Input) -> Event:
    repository = Repository(body)
    pull = body.at("pull_request")
    action, number = body.need_text("action"), pull.need_number("number")
    what = _what(action, pull)
    head = pull.need_text("head", "sha")
    merge = pull.text("merge_commit_sha") if what == "merged" else ""
    key = f"{repository.key}/pulls/{number}"
    return Event(
        type=f"github.pull_request.{what}",
        title=_title(body, pull, repository.name, number, what),
        external_key=f"{key}/{_moment_key(what, action, pull, head, delivery)}",
        ordering_key=key,
        category=Category.DELIVERY,
        severity=Severity.DEBUG if what == "changed" else Severity.INFO,
        occurred_at=_when(what, pull),
        entities=[
            Entity(
                "pull_request", f"{repository.name}#{number}", pull.text("title"), pull.text("html_url")
            ).subject(),
            repository.entity,
            *actor(body),
            repository.branch(pull.need_text("base", "ref")),
            repository.commit(head),
            *([repository.commit(merge)] if merge else []),
        ],
        evidence=[
            Evidence("pull_request", pull.text("html_url"), pull.text("title")),
            Evidence("diff", f"{pull.text('html_url')}/files", "What it changes"),
            *([Evidence("commit", repository.commit_url(merge), "The merge")] if merge else []),
        ],
        attributes={
            "action": action,
            "number": number,
            "draft": pull.flag("draft"),
            "head": pull.text("head", "label"),
            "base": pull.text("base", "label"),
            "label": body.text("label", "name"),
        },
        object=ObjectVersion("pull_request", f"{key}", pull.text("updated_at")),
        change=_merge(pull) if what == "merged" else None,
    )


def _what(action: str, pull: Document) -> str:
    if action == "closed":
        return "merged" if pull.flag("merged") else "closed"
    if action == "synchronize":
        return "updated"
    return action if action in {"opened", "reopened"} else "changed"


def _title(body: Document, pull: Document, repository: str, number: int, what: str) -> str:
    who = body.text("sender", "login") or "Somebody"
    verb = _VERBS.get(what, f"changed ({body.text('action').replace('_', ' ')})")
    return f"{who} {verb} {repository}#{number}: {pull.text('title')}"


def _moment_key(what: str, action: str, pull: Document, head: str, delivery: Input) -> str:
    """What a poll would also say of the same moment, as far as it could know of it."""
    match what:
        case "opened" | "merged":
            return what
        case "closed":
            return f"closed/{pull.text('closed_at')}"
        case "updated":
            return f"updated/{head}"
        case "reopened":
            return f"reopened/{pull.text('updated_at')}"
        case _:
            # Two labels of one second differ in nothing but their delivery.
            return f"{action}/{delivery.key or pull.text('updated_at')}"


def _when(what: str, pull: Document) -> datetime | None:
    fields = {"opened": "created_at", "merged": "merged_at", "closed": "closed_at"}
    return pull.time(fields.get(what, "updated_at"))


def _merge(pull: Document) -> Change:
    merged = pull.time("merged_at")
    return Change(kind=Change.Kind.MERGE, began_at=merged, ended_at=merged)
