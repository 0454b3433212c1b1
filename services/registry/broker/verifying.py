"""VerifyWebhook: a scheme that only the plugin knows. Anything but a clear yes is a no."""

from __future__ import annotations

import structlog

from services.registry.broker.calling import Calls
from services.registry.broker.declared import demand, the
from services.registry.broker.failures import CallFailed
from services.registry.broker.operations import Operation, Reach
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_VERIFY_WEBHOOK, CredentialSlot, Manifest
from tieline.plugin.v1.verify_pb2 import VerifyWebhookRequest, VerifyWebhookResponse
from tieline.plugin.v1.webhook_pb2 import Webhook
from tieline.registry.v1.broker_pb2 import ConnectionRef

log = structlog.get_logger(__name__)

VERIFY_SECONDS = 2.0
WEBHOOK_SLOT = "webhook"
REPLY_BYTES = 8 * 1024


class Verifying:
    def __init__(self, calls: Calls, longest: float = VERIFY_SECONDS) -> None:
        self._calls, self._longest = calls, longest

    async def verify(
        self, ref: ConnectionRef, given: VerifyWebhookRequest, within: float
    ) -> VerifyWebhookResponse:
        """Never raises CallFailed: whoever could not be asked did not say yes."""
        try:
            return _clear(await self._ask(ref, given, within))
        except CallFailed as failed:
            log.info("no verdict on a webhook", connection=ref.connection, why=str(failed))
            return _no(failed.failure.reason)

    async def _ask(
        self, ref: ConnectionRef, given: VerifyWebhookRequest, within: float
    ) -> VerifyWebhookResponse:
        _, process = await self._calls.find(ref)
        demand(CAPABILITY_VERIFY_WEBHOOK, process.manifest)
        webhook: Webhook = the("webhook", process.manifest.webhooks, given.webhook, process.manifest)
        request = VerifyWebhookRequest()
        request.CopyFrom(given)

        async def ask(reach: Reach) -> VerifyWebhookResponse:
            request.context.CopyFrom(reach.context)
            return await reach.stub.VerifyWebhook(request, **reach.options)

        slot = _slot(webhook, process.manifest)
        operation = Operation(name=f"VerifyWebhook/{webhook.name}", slot=slot, receives=True)
        return (await self._calls.unary(ref, operation, ask, min(within, self._longest))).message


def _slot(webhook: Webhook, manifest: Manifest) -> str:
    """Where its secret is, if the plugin may have it: a slot for the gateway alone is not its own."""
    name = webhook.slot or WEBHOOK_SLOT
    for slot in manifest.credential_slots:
        if slot.name == name and slot.uses and CredentialSlot.USE_CALL not in slot.uses:
            return ""
    return name


def _clear(answer: VerifyWebhookResponse) -> VerifyWebhookResponse:
    match answer.WhichOneof("verdict"):
        case "accepted":
            return answer
        case "challenge":
            reply = answer.challenge
            fits = 200 <= reply.status <= 299 and len(reply.body) <= REPLY_BYTES
            return answer if fits else _no("CHALLENGE_INVALID")
        case "rejected":
            return _no(answer.rejected.reason)
        case _:
            return _no("VERDICT_MISSING")


def _no(reason: str) -> VerifyWebhookResponse:
    return VerifyWebhookResponse(rejected=VerifyWebhookResponse.Rejected(reason=reason[:64]))
