"""Asking plugin and provider how a connection is, thing by thing, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.registry.broker import failures
from services.registry.broker.broker import Broker
from services.registry.broker.examining import Finding
from services.registry.connections.book import ConnectionBook
from services.registry.connections.connection import Application, Connection, State
from services.registry.connections.proving import Prover
from services.registry.connections.wanted import webhooks_of
from services.registry.host.host import Host
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.manifest_pb2 import Manifest

_ADVICE = {
    FailureKind.FAILURE_KIND_TRANSIENT: "Wait: it is tried again by itself. If it lasts, look at the provider's status"
    " page and at `tieline plugin show`.",
    FailureKind.FAILURE_KIND_RATE_LIMITED: "Wait: the provider asks for patience.",
    FailureKind.FAILURE_KIND_AUTH_FAILED: "Give the credential a value that works: `tieline credential rotate`; then"
    " `tieline connection resume`.",
    FailureKind.FAILURE_KIND_PERMISSION_DENIED: "Grant it: the scope at the provider, or the credential to the"
    " connection (`tieline credential grant`); then `tieline connection resume`.",
    FailureKind.FAILURE_KIND_INVALID_CONFIG: "Change the settings: `tieline connection update --set POINTER=JSON`, or go"
    " back with `tieline connection rollback`.",
    FailureKind.FAILURE_KIND_INTERNAL: "It is the plugin's fault: `tieline plugin show` has its crashes; its author"
    " should know.",
}
_OTHERWISE = "`tieline connection show` says how it stands; docs/connections.md says what that means."


@dataclass(frozen=True, slots=True)
class Checked:
    subject: str
    failure: Failure | None = None
    advice: str = ""


class Checking:
    def __init__(self, book: ConnectionBook, host: Host, broker: Broker, prover: Prover) -> None:
        self._book, self._host, self._broker, self._prover = book, host, broker, prover

    async def check(self, tenant: str, id_: str) -> list[Checked]:
        """Of the newest revision: that is the one which somebody wants to work."""
        connection = await self._book.get(tenant, id_)
        served = connection.served(connection.revision)
        process = self._host.route(served)
        if process is None:
            why = failures.transient("PLUGIN_ABSENT", f"the plugin {connection.plugin} cannot be run")
            advice = "Install it, or a version that fits `version_range`: `tieline plugin list`."
            return [Checked("plugin", why, advice)]
        with self._broker.examining.about(served):
            examination = await self._broker.examining.examine(process, served)
            if connection.revision != connection.applied_revision and not _is_tried(connection):
                await self._broker.calls.preparation.release(process, served.instance)
        if examination.failure is None and connection.revision == connection.applied_revision:
            await self._prover.found(connection, examination.accounts)
            connection = await self._book.get(tenant, id_)
        told = [_told(finding) for finding in examination.findings]
        return [*told, *_webhooks(connection, process.manifest), *_accounts(connection)]


def _is_tried(connection: Connection) -> bool:
    """Somebody else is about to serve it, or to see whether it can be."""
    return connection.state is not State.DELETING and connection.application in (
        Application.PENDING,
        Application.APPLYING,
    )


def _told(finding: Finding) -> Checked:
    if finding.failure is None:
        return Checked(finding.subject)
    if not finding.needed:
        return Checked(finding.subject, finding.failure, "It works without; only what needs it is off.")
    return Checked(finding.subject, finding.failure, _ADVICE.get(finding.failure.kind, _OTHERWISE))


def _webhooks(connection: Connection, manifest: Manifest) -> Iterator[Checked]:
    received = set(webhooks_of(connection.wanted, manifest))
    for webhook in manifest.webhooks:
        if webhook.name in received and webhook.name in connection.endpoints:
            yield Checked(f"webhook {webhook.name}")
        elif webhook.name in received:
            why = failures.not_found("ENDPOINT_MISSING", f"the webhook {webhook.name} has no URL")
            yield Checked(
                f"webhook {webhook.name}", why, "`tieline connection update --webhook` gives it one."
            )


def _accounts(connection: Connection) -> Iterator[Checked]:
    for one in connection.wanted.account_keys:
        if one.key in connection.accounts:
            yield Checked(f"account {one.key}")
            continue
        why = failures.permission_denied("ACCOUNT_NOT_PROVEN", "nothing shows that it is this tenant's")
        advice = (
            "Bind a credential that controls it and check again, or ask who runs the platform:"
            f" `tieline app approve {connection.name} {one.key}`."
        )
        yield Checked(f"account {one.key}", why, advice)
