"""The plugin's side of the contract, without a server: messages in, messages out, `Failure` for what fails."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from tieline.common.v1 import diagnostic_pb2
from tieline.plugin.v1 import execute_pb2, fetch_pb2, instance_pb2, manifest_pb2, plugin_pb2, transform_pb2
from tieline.sdk._convert.actions import to_action, to_outcome, to_question, to_response
from tieline.sdk._convert.events import to_drafts, to_input
from tieline.sdk._convert.failures import to_failure
from tieline.sdk._convert.fetching import Fetching
from tieline.sdk._convert.instances import Instances
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import (
    Acts,
    ChecksHealth,
    Configures,
    Diagnostic,
    Event,
    Failure,
    FailureKind,
    Health,
    Instance,
    InvalidInput,
    Migrates,
    Plugin,
    Probes,
    Skip,
    TellsOutcomes,
    Transforms,
)
from tieline.sdk.document import DocumentError

log = logging.getLogger("tieline")

Answer = Callable[[Any], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Method:
    request: type[Message]
    answer: Answer


@dataclass(frozen=True, slots=True)
class Streamed:
    """A method that answers with many messages."""

    request: type[Message]
    answer: Callable[[Any], AsyncIterator[Message]]


class Service:
    """What every plugin answers, around the few things that one plugin does."""

    def __init__(
        self, plugin: Plugin, manifest: manifest_pb2.Manifest, proof: bytes, stop: Callable[[float], None]
    ) -> None:
        self._plugin = plugin
        self._described = plugin_pb2.DescribeResponse(
            manifest=manifest, launch_proof=proof, sdk=f"tieline-python {version('tieline')}"
        )
        self._stop = stop
        self._instances = Instances()
        self._fetching = Fetching(plugin, manifest, self._instances)

    def streamed(self) -> dict[str, Streamed]:
        """As `methods`, those that answer with a stream."""
        if not self._fetching.fetches:
            return {}
        return {"FetchData": Streamed(fetch_pb2.FetchDataRequest, self._fetching.fetch_data)}

    def methods(self) -> dict[str, Method]:
        """What is not in here answers UNIMPLEMENTED by itself."""
        methods = {
            "Describe": Method(plugin_pb2.DescribeRequest, self.describe),
            "Initialize": Method(instance_pb2.InitializeRequest, self.initialize),
            "Authenticate": Method(instance_pb2.AuthenticateRequest, self.authenticate),
            "HealthCheck": Method(instance_pb2.HealthCheckRequest, self.health_check),
            "Release": Method(instance_pb2.ReleaseRequest, self.release),
            "Shutdown": Method(plugin_pb2.ShutdownRequest, self.shutdown),
        }
        if isinstance(self._plugin, Transforms):
            methods["TransformData"] = Method(transform_pb2.TransformDataRequest, self.transform_data)
        if isinstance(self._plugin, Acts):
            methods["Execute"] = Method(execute_pb2.ExecuteRequest, self.execute)
        if isinstance(self._plugin, TellsOutcomes):
            methods["GetOperation"] = Method(execute_pb2.GetOperationRequest, self.get_operation)
        if self._fetching.lists:
            request = fetch_pb2.ListPartitionsRequest
            methods["ListPartitions"] = Method(request, self._fetching.list_partitions)
        return methods

    async def describe(self, _: plugin_pb2.DescribeRequest) -> plugin_pb2.DescribeResponse:
        return self._described

    async def initialize(self, request: instance_pb2.InitializeRequest) -> instance_pb2.InitializeResponse:
        given = _settings(request.settings)
        settings = self._migrated(given, request.settings_version)
        diagnostics: list[Diagnostic] = []
        if isinstance(self._plugin, Configures):
            diagnostics = list(self._plugin.configure(settings))
        refused = any(item.severity is Diagnostic.Severity.ERROR for item in diagnostics)
        if not request.validate_only:
            if refused:
                raise Failure(
                    FailureKind.INVALID_CONFIG,
                    "SETTINGS_REFUSED",
                    next(item.summary for item in diagnostics if item.severity is Diagnostic.Severity.ERROR),
                    diagnostics=diagnostics,
                )
            self._instances.put(
                Instance(
                    id=request.instance_id,
                    revision=request.config_revision,
                    settings=settings,
                    account_keys=tuple(request.account_keys),
                    flags=frozenset(request.flags),
                )
            )
        answer = instance_pb2.InitializeResponse(diagnostics=map(to_diagnostic, diagnostics))
        if settings != given:
            answer.migrated_settings = json.dumps(settings).encode()
        return answer

    def _migrated(self, settings: dict[str, Any], written_for: str) -> dict[str, Any]:
        """The settings as this version has them."""
        older = bool(written_for) and _number(written_for) < _number(self._described.manifest.version)
        if older and isinstance(self._plugin, Migrates):
            return dict(self._plugin.migrate(MappingProxyType(settings), written_for))
        return settings

    async def authenticate(
        self, request: instance_pb2.AuthenticateRequest
    ) -> instance_pb2.AuthenticateResponse:
        answer = self._instances.authenticate(request)
        if request.probe:
            answer.probe.CopyFrom(await self._probe(request))
        return answer

    async def _probe(
        self, request: instance_pb2.AuthenticateRequest
    ) -> instance_pb2.AuthenticateResponse.Probe:
        answer = instance_pb2.AuthenticateResponse.Probe()
        try:
            if not isinstance(self._plugin, Probes):
                why = "this plugin cannot ask its provider"
                raise Failure(FailureKind.UNSUPPORTED, "NO_PROBE", why)  # noqa: TRY301 - one way out for all
            instance, credential = self._instances.held(request)
            found = await self._plugin.probe(instance, credential)
        except Failure as failure:
            answer.failure.CopyFrom(to_failure(failure))
            return answer
        return instance_pb2.AuthenticateResponse.Probe(
            valid=True,
            principal=found.principal,
            account_keys=found.account_keys,
            granted_scopes=found.granted_scopes,
            missing_scopes=found.missing_scopes,
        )

    async def transform_data(
        self, request: transform_pb2.TransformDataRequest
    ) -> transform_pb2.TransformDataResponse:
        answer = transform_pb2.TransformDataResponse()
        for group in request.groups:
            answer.results.append(self._transform_group(group))
            # Between two groups others have their turn: a health check, a cancelled call.
            await asyncio.sleep(0)
        return answer

    async def execute(self, request: execute_pb2.ExecuteRequest) -> execute_pb2.ExecuteResponse:
        instance = self._instances.get(request.context)
        assert isinstance(self._plugin, Acts)  # noqa: S101  or there would be no such method
        return to_response(await self._plugin.act(instance, to_action(request)))

    async def get_operation(
        self, request: execute_pb2.GetOperationRequest
    ) -> execute_pb2.GetOperationResponse:
        instance = self._instances.get(request.context)
        assert isinstance(self._plugin, TellsOutcomes)  # noqa: S101  or there would be no such method
        return to_outcome(await self._plugin.outcome(instance, to_question(request)))

    async def health_check(
        self, request: instance_pb2.HealthCheckRequest
    ) -> instance_pb2.HealthCheckResponse:
        instance = self._instances.get(request.context)
        found: Iterable[Health] = ()
        if isinstance(self._plugin, ChecksHealth):
            found = await self._plugin.health(instance)
        return _health(found)

    async def release(self, request: instance_pb2.ReleaseRequest) -> instance_pb2.ReleaseResponse:
        self._instances.forget(request.instance_id)
        return instance_pb2.ReleaseResponse()

    async def shutdown(self, request: plugin_pb2.ShutdownRequest) -> plugin_pb2.ShutdownResponse:
        grace = request.grace.ToTimedelta().total_seconds() if request.HasField("grace") else 20.0
        self._stop(grace)
        return plugin_pb2.ShutdownResponse()

    def _transform_group(self, group: transform_pb2.TransformGroup) -> transform_pb2.TransformGroupResult:
        result = transform_pb2.TransformGroupResult(instance_id=group.context.instance_id)
        try:
            instance = self._instances.get(group.context)
        except Failure as failure:
            result.failure.CopyFrom(to_failure(failure))
            return result
        for item in group.inputs:
            result.outcomes.append(self._transform(instance, item))
        return result

    def _transform(
        self, instance: Instance, item: transform_pb2.TransformInput
    ) -> transform_pb2.TransformOutcome:
        """One input is one border: whatever it does to the plugin, its neighbours do not notice."""
        outcome = transform_pb2.TransformOutcome(input_id=item.input_id)
        assert isinstance(self._plugin, Transforms)  # noqa: S101  or there would be no such method
        try:
            made = self._plugin.transform(instance, to_input(item))
            if isinstance(made, Skip):
                outcome.skipped.reason = made.reason
            else:
                outcome.events.CopyFrom(to_drafts([made] if isinstance(made, Event) else made))
        except Failure as failure:
            outcome.failure.CopyFrom(to_failure(failure))
        except DocumentError as error:
            outcome.failure.CopyFrom(to_failure(InvalidInput(str(error))))
        except Exception as error:  # the border of one input; the log has the rest
            log.exception("an input could not be transformed")
            defect = Failure(FailureKind.INTERNAL, "DEFECT", f"the plugin raised {type(error).__name__}")
            outcome.failure.CopyFrom(to_failure(defect))
        return outcome


def launch_proof(nonce: bytes, address: str) -> bytes:
    """Shows that we are the process that was started; nothing where nobody asked for a proof."""
    return hmac.digest(nonce, address.encode(), hashlib.sha256) if nonce else b""


def to_diagnostic(item: Diagnostic) -> diagnostic_pb2.Diagnostic:
    kind = diagnostic_pb2.Diagnostic
    return kind(
        severity=kind.Severity.Value(f"SEVERITY_{item.severity.name}"),
        pointer=item.pointer,
        summary=clean(item.summary, 256),
        detail=clean(item.detail, 1024),
    )


def _number(text: str) -> tuple[int, ...]:
    """To compare by: a pre-release counts as its release."""
    return tuple(int(part) for part in text.partition("-")[0].split(".") if part.isdecimal())


def _settings(raw: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Failure(FailureKind.INVALID_CONFIG, "SETTINGS_NOT_JSON", "the settings are not a JSON object")
    return settings


def _health(found: Iterable[Health]) -> instance_pb2.HealthCheckResponse:
    kind = instance_pb2.HealthCheckResponse
    answer = kind(state=kind.STATE_OK)
    for item in found:
        state = kind.State.Value(f"STATE_{item.state.name}")
        finding = kind.Finding(name=item.name, state=state)
        if item.failure is not None:
            finding.failure.CopyFrom(to_failure(item.failure))
        answer.findings.append(finding)
        answer.state = max(answer.state, state)
    return answer


def refusal(failure: Failure) -> list[Message]:
    """What goes into the details of a call that fails as a whole, together below 4 KiB."""
    details: list[Message] = [to_failure(failure)]
    room = 3000 - details[0].ByteSize()
    for item in map(to_diagnostic, failure.diagnostics):
        room -= item.ByteSize()
        if room < 0:
            break
        details.append(item)
    return details
