"""Receives the worker's messages in the step, by Dagster Pipes. They travel in files, from other machines too."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import dagster as dg
from dagster_pipes import PipesContextData
from pydantic import Field, TypeAdapter

from wan_orchestration.protocol import progress
from wan_orchestration.protocol.messages import (
    FinishedSegment,
    PreprocessOutcome,
    PreprocessProgress,
    PreprocessRequest,
    Progress,
    Request,
    Result,
)
from wan_orchestration.settings.environment import environment

CHANGED_LOG_SECONDS, SAME_LOG_SECONDS = 4.0, 30.0
"""Least time between two lines of progress in the log: if the words have changed, and if they have not."""

Outcome = Result | PreprocessOutcome

Message = TypeAdapter(
    Annotated[Progress | FinishedSegment | Result | PreprocessProgress | PreprocessOutcome, Field(discriminator="kind")]
)


@contextmanager
def pipes_session(
    context: dg.AssetExecutionContext,
    request: Request | PreprocessRequest,
    injector: dg.PipesContextInjector | None = None,
    *,
    reader: dg.PipesMessageReader,
) -> Iterator[dg.PipesSession]:
    """A Pipes session for one launch. The injector uses a temporary file of this machine by default.

    `dg.open_pipes_session` cannot be used: it expects one output of the step, but a run over several jobs reports each
    job's materialization as soon as its video is finished.
    """
    data = PipesContextData(
        asset_keys=None,
        code_version_by_asset_key=None,
        provenance_by_asset_key=None,
        partition_key=None,
        partition_key_range=None,
        partition_time_window=None,
        run_id=context.run.run_id,
        job_name=context.run.job_name,
        retry_number=context.retry_number,
        extras={"jobs": job_ids(request)},
    )
    handler = dg.PipesMessageHandler(context, reader)
    injector = injector or dg.PipesTempFileContextInjector()
    with injector.inject_context(data) as context_params, handler.handle_messages() as message_params:
        yield dg.PipesSession(data, handler, context_params, message_params, context)


def job_ids(request: Request | PreprocessRequest) -> list[str]:
    """Keys of a request's jobs."""
    return [request.job_id] if isinstance(request, PreprocessRequest) else [task.job_id for task in request.tasks]


class LaunchMonitor:
    """Follows one launch by the messages of its rank 0: logs progress, reports each segment as an event."""

    def __init__(self, context: dg.AssetExecutionContext, request: Request | PreprocessRequest) -> None:
        self.context = context
        self.active_at = time.monotonic()
        """When the worker last reported something new; an estimate of the time left does not count."""
        self.pending = dict.fromkeys(job_ids(request))
        """Jobs without an outcome so far, in order."""
        self._reported_job: str | None = None
        """Job of the newest progress message; None after an outcome."""
        self._processed = 0
        self._last_progress: tuple[object, ...] = ()
        self._logged_at, self._logged_words = float("-inf"), ""

    @property
    def current_job(self) -> str:
        """The job that the worker is working on. A crash counts as this job's."""
        return self._reported_job or next(iter(self.pending))

    def process(self, messages: Sequence[Any]) -> list[Outcome]:
        """Process all messages so far; returns the outcomes that are new since the last call."""
        outcomes: list[Outcome] = []
        latest: Progress | PreprocessProgress | None = None
        for message in map(Message.validate_python, messages[self._processed :]):
            if not self._is_repeated(message):
                self.active_at = time.monotonic()
            if isinstance(message, Outcome):
                outcomes.append(message)
                self.pending.pop(message.job_id, None)
                self._reported_job = None
            elif isinstance(message, FinishedSegment):
                self.context.log_event(_observation(self.context.asset_key, message))
            else:
                latest = message
                self._reported_job = message.job_id
        self._processed = len(messages)
        if latest:
            progress.write(environment().progress_root, self.context.run.run_id, latest)
            self._log(latest)
        return outcomes

    def _log(self, latest: Progress | PreprocessProgress) -> None:
        wait = SAME_LOG_SECONDS if latest.words == self._logged_words else CHANGED_LOG_SECONDS
        if time.monotonic() - self._logged_at >= wait:
            self.context.log.info(str(latest))
            self._logged_at, self._logged_words = time.monotonic(), latest.words

    def _is_repeated(self, message: Any) -> bool:
        """Whether the worker sent the same progress before, as it does during a long phase or denoising step."""
        last = self._last_progress
        self._last_progress = ()
        if isinstance(message, Progress):
            self._last_progress = message.job_id, message.phase, message.segment, message.take, message.step
        return bool(last) and self._last_progress == last


def _observation(asset: dg.AssetKey, segment: FinishedSegment) -> dg.AssetObservation:
    """A finished segment as an event of the run and of the asset; Dagster plots its numbers."""
    metadata = segment.model_dump(include={"segment", "segments", "frames", "seconds", "seconds_per_step"})
    return dg.AssetObservation(asset, str(segment), partition=segment.job_id, metadata=metadata)
