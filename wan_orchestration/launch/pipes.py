"""How the worker's messages reach the step: Dagster Pipes, by files, so that it also works from another machine."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import dagster as dg
from dagster_pipes import PipesContextData
from pydantic import Field, TypeAdapter

from wan_orchestration.protocol import progress
from wan_orchestration.protocol.messages import (
    FinishedClip,
    PreprocessOutcome,
    PreprocessProgress,
    PreprocessRequest,
    Progress,
    Request,
    Result,
)
from wan_orchestration.settings.environment import environment

PROGRESS_SECONDS, SAME_SECONDS = 4.0, 30.0
"""Between two lines of progress in the log, at least: of another step or phase, and of the same."""

Outcome = Result | PreprocessOutcome

Message = TypeAdapter(
    Annotated[Progress | FinishedClip | Result | PreprocessProgress | PreprocessOutcome, Field(discriminator="kind")]
)


@contextmanager
def session(
    context: dg.AssetExecutionContext,
    request: Request | PreprocessRequest,
    injector: dg.PipesContextInjector | None = None,
    reader: dg.PipesMessageReader | None = None,
) -> Iterator[dg.PipesSession]:
    """A Pipes session for one launch; by temporary files of this machine unless told otherwise.

    `dg.open_pipes_session` is not used: it demands one output of the step, where a run over several jobs notes each
    job's materialization as it comes.
    """
    facts = PipesContextData(
        asset_keys=None,
        code_version_by_asset_key=None,
        provenance_by_asset_key=None,
        partition_key=None,
        partition_key_range=None,
        partition_time_window=None,
        run_id=context.run.run_id,
        job_name=context.run.job_name,
        retry_number=context.retry_number,
        extras={"jobs": jobs_of(request)},
    )
    handler = dg.PipesMessageHandler(context, reader or dg.PipesTempFileMessageReader())
    injector = injector or dg.PipesTempFileContextInjector()
    with injector.inject_context(facts) as place_of_context, handler.handle_messages() as place_of_messages:
        yield dg.PipesSession(facts, handler, place_of_context, place_of_messages, context)


def jobs_of(request: Request | PreprocessRequest) -> list[str]:
    """Keys of the jobs that a request is about."""
    return [request.job_id] if isinstance(request, PreprocessRequest) else [task.job_id for task in request.tasks]


class Listener:
    """Takes in what rank 0 reports: progress is logged, at most a line every few seconds, each clip is an event."""

    def __init__(self, context: dg.AssetExecutionContext, request: Request | PreprocessRequest) -> None:
        self.context = context
        self.heard_at = time.monotonic()
        """When the worker last reported anything but time that passes."""
        self.at: str | None = None
        """Job of the last message that was not an outcome: the one at work."""
        self.pending = dict.fromkeys(jobs_of(request))
        """Jobs without an outcome so far, in order."""
        self._heard = 0
        self._last: tuple[object, ...] = ()
        self._logged, self._said = float("-inf"), ""

    @property
    def culprit(self) -> str:
        """The job to blame when the worker dies."""
        return self.at or next(iter(self.pending))

    def hear(self, messages: Sequence[Any]) -> list[Outcome]:
        """Take in all messages so far; returns the outcomes among those that are new since the last call."""
        outcomes: list[Outcome] = []
        latest: Progress | PreprocessProgress | None = None
        for message in map(Message.validate_python, messages[self._heard :]):
            if not self._repeats(message):
                self.heard_at = time.monotonic()
            if isinstance(message, Outcome):
                outcomes.append(message)
                self.pending.pop(message.job_id, None)
                self.at = None
            elif isinstance(message, FinishedClip):
                self.context.log_event(_observation(self.context.asset_key, message))
            else:
                latest = message
                self.at = message.job_id
        self._heard = len(messages)
        if latest:
            progress.write(environment().progress_root, self.context.run.run_id, latest)
        wait = SAME_SECONDS if latest and latest.words == self._said else PROGRESS_SECONDS
        if latest and time.monotonic() - self._logged >= wait:
            self.context.log.info(str(latest))
            self._logged, self._said = time.monotonic(), latest.words
        return outcomes

    def _repeats(self, message: Any) -> bool:
        """Whether this is the progress of before, which is sent again while a phase or a step goes on."""
        last = self._last
        self._last = ()
        if isinstance(message, Progress):
            self._last = message.job_id, message.phase, message.clip, message.step
        return bool(last) and self._last == last


def _observation(asset: dg.AssetKey, clip: FinishedClip) -> dg.AssetObservation:
    """A finished clip as an event of the run and of the asset, whose numbers Dagster plots."""
    facts = clip.model_dump(include={"clip", "clips", "frames", "seconds", "seconds_per_step"})
    return dg.AssetObservation(asset, str(clip), partition=clip.job_id, metadata=facts)
