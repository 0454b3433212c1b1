"""What became of a group's inputs, put together from the batches and trials that they went through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.registry.broker.batches import Share
from services.registry.broker.verdicts import Declared, judged
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.transform_pb2 import TransformGroupResult, TransformInput, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataResponse


@dataclass(slots=True)
class Tally:
    """Of one group."""

    result: TransformDataResponse.Result = field(default_factory=TransformDataResponse.Result)
    _failed: list[tuple[list[TransformInput], Failure]] = field(default_factory=list)
    _mixed: bool = False

    def answered(self, share: Share, answer: TransformGroupResult, declared: Declared) -> None:
        if answer.HasField("failure"):
            self.failed(share.inputs, answer.failure)
        else:
            self.result.outcomes.extend(judged(share, answer, declared))

    def failed(self, inputs: Iterable[TransformInput], failure: Failure) -> None:
        """None of these was looked at."""
        self._failed.append((list(inputs), failure))

    def failed_alone(self, item: TransformInput, failure: Failure) -> None:
        """This is what the input itself came to."""
        self._mixed = True
        self.failed([item], failure)

    def finish(self) -> TransformDataResponse.Result:
        """A group fails as a whole only if nothing is known of any of its inputs."""
        if self._failed and not self._mixed and not self.result.outcomes:
            self.result.failure.CopyFrom(self._failed[0][1])
            return self.result
        for inputs, failure in self._failed:
            self.result.outcomes.extend(
                TransformOutcome(input_id=item.input_id, failure=failure) for item in inputs
            )
        return self.result
