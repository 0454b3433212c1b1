"""Connections as lines for people."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

from tieline.registry.v1.connections_pb2 import (
    AccountKey,
    ApplyConnectionsResponse,
    CheckConnectionResponse,
    Connection,
    ConnectionRevision,
    ProviderSubscription,
)


def of_one(one: Connection) -> str:
    return f"{one.name:<50} {_state(one):<10} {one.plugin:<24} {one.title}".rstrip()


def of_whole(one: Connection) -> str:
    lines = [of_one(one)]
    if one.HasField("failure"):
        lines.append(f"  why: {one.failure.message}")
    if one.revision:
        serves = f"revision {one.applied_revision} serves" if one.applied_revision else "none serves yet"
        lines.append(f"  revision {one.revision} is {_application(one.application)}, {serves}")
    if one.HasField("application_failure"):
        lines.append(f"  not applied: {one.application_failure.message}")
    lines += [f"  {webhook}: {url}" for webhook, url in sorted(one.webhook_urls.items())]
    lines += [f"  {of_account(account, one.app)}" for account in one.account_keys]
    lines += [f"  {_subscribed(subscription)}" for subscription in one.subscriptions]
    return "\n".join(lines)


def of_account(one: AccountKey, app: str) -> str:
    claim = AccountKey.Claim.Name(one.claim).removeprefix("CLAIM_").lower()
    waits = ", receives nothing until it is proven or approved" if claim == "claimed" else ""
    return f"account {one.key} at {app}: {claim}{waits}"


def _subscribed(one: ProviderSubscription) -> str:
    if one.HasField("failure"):
        return f"subscription of {one.webhook}: {one.failure.reason} {one.failure.message}"
    until = f" until {one.expire_time.ToDatetime(UTC):%Y-%m-%d %H:%M}" if one.HasField("expire_time") else ""
    return f"subscription of {one.webhook}: {one.subscription_id}{until}"


def of_revision(one: ConnectionRevision) -> str:
    what = ", ".join(one.changed_fields)
    again = f"  (again revision {one.rollback_of})" if one.rollback_of else ""
    went, when = _application(one.application), one.create_time.ToJsonString()
    lines = [f"{one.revision:>6}  {went:<9} {when}  {one.author}: {what}{again}"]
    for step in json.loads(one.settings_patch or b"[]"):
        value = f" {json.dumps(step['value'])}" if "value" in step else ""
        lines.append(f"          {step['op']} {step['path'] or '/'}{value}")
    return "\n".join(lines)


def of_finding(one: CheckConnectionResponse.Finding) -> str:
    if one.ok:
        return f"ok    {one.subject}"
    return f"BAD   {one.subject}: {one.failure.message}\n      {one.advice}"


def of_outcome(wanted: Connection, outcome: ApplyConnectionsResponse.Outcome) -> str:
    if outcome.HasField("failure"):
        return f"{wanted.name:<50} refused    {outcome.failure.message}"
    one = outcome.connection
    return f"{wanted.name:<50} accepted   revision {one.revision}, {_application(one.application)}"


def more(one: Connection) -> dict[str, Any]:
    """For the many connections with one webhook: its URL by a name that a script can rely on."""
    urls = list(one.webhook_urls.values())
    return {"webhook_url": urls[0]} if len(urls) == 1 else {}


def _state(one: Connection) -> str:
    return Connection.State.Name(one.state).removeprefix("STATE_").lower()


def _application(value: Connection.Application.ValueType) -> str:
    return Connection.Application.Name(value).removeprefix("APPLICATION_").lower()
