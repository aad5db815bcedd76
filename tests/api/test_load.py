"""Many clients at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import httpx
import pytest
from api_server import JOBS, free_port, serving

CLIENTS, EACH, SECONDS = 20, 10, 10.0
PATIENCE = 600.0


@pytest.mark.heavy
def test_two_hundred_submissions_from_twenty_clients(project, add_job, instance):
    """All are sent within 10 s. Clients that get 429 retry, until every submission is accepted once."""
    keys = [[add_job(f"load-{client}-{number}") for number in range(EACH)] for client in range(CLIENTS)]
    answers: list[int] = []
    lock = threading.Lock()

    def client(mine: list[str]) -> None:
        started = time.monotonic()
        with httpx.Client(base_url=url, timeout=120) as http:
            for number, key in enumerate(mine):
                time.sleep(max(0.0, started + SECONDS / EACH * number - time.monotonic()))
                while time.monotonic() - started < PATIENCE:
                    body = {"src_root_path": f"data/jobs/{key}"}
                    answer = http.post(JOBS, json=body, headers={"Idempotency-Key": key})
                    with lock:
                        answers.append(answer.status_code)
                    if answer.status_code != 429:
                        assert answer.status_code == 202, answer.text
                        break
                    assert answer.headers["content-type"] == "application/problem+json"
                    time.sleep(float(answer.headers["retry-after"]))

    with serving(project, free_port()) as url, ThreadPoolExecutor(CLIENTS) as pool:
        started = time.monotonic()
        list(pool.map(client, keys))
        seconds = time.monotonic() - started
    print(f"{answers.count(202)} accepted, {answers.count(429)} times 429, all accepted after {seconds:.0f} s")
    assert set(answers) <= {202, 429} and answers.count(202) == CLIENTS * EACH
    every = [key for mine in keys for key in mine]
    runs = [run.tags["dagster/partition"] for run in instance.get_runs() if run.tags["dagster/partition"] in set(every)]
    assert sorted(runs) == sorted(every), "exactly one run for each"
    assert instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])) == CLIENTS * EACH
