"""Which jobs of a launch are retried. The launcher is a stand-in that crashes for jobs with certain names."""

from collections.abc import Generator
from pathlib import Path

import dagster as dg
import pytest
from tasks import make_task

from wan_orchestration.defs import worker_retries
from wan_orchestration.launch.launcher import Launcher, WorkerDied
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result


class Crashing(Launcher):
    def generate(self, context, request: Request) -> Generator[Result]:
        asked.append([task.job_id for task in request.tasks])
        for task in request.tasks:
            if task.job_id.startswith("crash"):
                raise WorkerDied(f"{task.job_id} died", task.job_id, retryable=not task.job_id.endswith("hung"))
            lost = task.job_id == "lost" and len(asked) < 3
            status = "failed" if lost else "succeeded"
            yield Result(job_id=task.job_id, status=status, created_at=task.created_at, may_pass=lost)

    def preprocess(self, context, request: PreprocessRequest) -> PreprocessOutcome:
        raise NotImplementedError


asked: list[list[str]] = []


@pytest.mark.parametrize(
    "jobs, launches, failed",
    [
        (["a", "crash", "b"], [["a", "crash", "b"], ["crash", "b"], ["crash", "b"], ["b"]], ["crash"]),
        (["crash-hung", "a"], [["crash-hung", "a"], ["a"]], ["crash-hung"]),
        (["lost", "a"], [["lost", "a"], ["lost"], ["lost"]], []),
    ],
)
def test_crashed_jobs_are_retried_and_others_continue(monkeypatch, tmp_path, jobs, launches, failed):
    monkeypatch.setattr(worker_retries, "WAIT_SECONDS", 0)
    asked.clear()
    request = Request(snapshot=Path("weights"), tasks=[make_task(job, tmp_path) for job in jobs])
    context = dg.build_asset_context()
    results = {result.job_id: result for result in worker_retries.generate(context, Crashing(), request)}
    assert asked == launches
    assert results.keys() == set(jobs)
    assert [job for job in jobs if results[job].status == "failed"] == failed
    assert all(results[job].error == f"{job} died" for job in failed)
