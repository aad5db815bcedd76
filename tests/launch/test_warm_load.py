"""Two hundred short jobs on two CPU slots with warm launches: clients cancel, processes are killed, others wait.

A real `wan-animate serve --dagster`, torchrun and keeper. Most jobs have an engine that takes no time, a smaller number
the real one. Two clients start a run for each job, two start runs over ten jobs. Half an hour on two cores:
`pytest -m heavy tests/launch/test_warm_load.py`.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import dagster as dg
import httpx
import psutil
import pytest

from wan_orchestration.defs.jobs.run_requests import jobs_of, partition_tags
from wan_orchestration.protocol import launches, leases
from wan_orchestration.protocol.messages import Result

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
MINI = ROOT / "data" / "models" / "wan-animate-mini"
TESTS = ROOT / "tests"
JOBS = {"fast": int(os.environ.get("WARM_LOAD_JOBS", 200)), "real": int(os.environ.get("WARM_LOAD_REAL_JOBS", 60))}
"""Number of jobs by engine."""
UNFINISHED = 5
"""The most unfinished jobs of a client that sends one at a time."""
WARM_SECONDS = 20
PATIENCE = 3600.0
GONE_SECONDS = 15
POLL_SECONDS = 3.0
KILL_SECONDS, LEASE_SECONDS = 20.0, 40.0
"""Time between two kills, and between two programs that want a device."""
DEVICES = ["cpu-0", "cpu-1"]
URL = "/animate/jobs"
BATCH = "test/batch"
"""Run tag: name of the batch that a run makes."""
BATCH_JOBS = 10
LAUNCH = """
mutation ($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) { __typename ... on PythonError { message } }
}
"""


class Service:
    """`wan-animate serve --dagster` on data, devices and launches of its own."""

    def __init__(self, folder: Path, second_snapshot: Path, engine: str) -> None:
        self.folder, self.data, self.leases = folder, folder / "data", folder / "leases"
        self.home, self.temporary = folder / "dagster_home", folder / "tmp"
        for each in (self.data / "jobs", self.home, self.temporary):
            each.mkdir(parents=True)
        shutil.copy(ROOT / "dagster_home" / "dagster.yaml", self.home)
        (folder / "workspace.yaml").write_text(
            "load_from:\n- python_module: {module_name: two_snapshots, location_name: wan_orchestration, "
            f"working_directory: {Path(__file__).parent}}}\n"
        )
        self.port, self.dagster_port = free_port(), free_port()
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WAN_", "DAGSTER_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        self.environment = inherited | {
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS), str(TESTS / "launch")]),
            "FAST_STEP_SECONDS": "0.5" if engine == "fast" else "",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
            "SECOND_SNAPSHOT": str(second_snapshot),
            "WAN_DATA_ROOT": str(self.data),
            "WAN_CACHE_ROOT": str(folder / "cache"),
            "WAN_CHECKPOINT_DIR": str(MINI),
            "WAN_DEFAULT_CLIP_LEN": "5",
            "WAN_DEFAULT_SAMPLING_STEPS": "2",
            "WAN_DROP_RUN": "false",
            "WAN_GPUS_CPU_SLOTS": str(len(DEVICES)),
            "WAN_GPUS_LEASE_FOLDER": str(self.leases),
            "WAN_TORCHRUN_GRACE_SECONDS": "3",
            "WAN_TORCHRUN_KEEP_WARM_SECONDS": str(WARM_SECONDS),
        }
        self.command = [sys.executable, "-m", "wan_orchestration.cli.main", "serve", "--dagster"]
        self.command += [f"--port={self.port}", f"--dagster-port={self.dagster_port}"]
        self.log = folder / "serve.log"
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        # Creates its databases: API and daemon, which open it at once, could not both do it.
        self.instance = dg.DagsterInstance.from_config(str(self.home))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self.is_ready() and self.has_ui(), 180)

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").json()["checks"].get("daemon") == "ok"
        assert self.process.poll() is None, self.log.read_text()
        return False

    def has_ui(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.dagster_port}/server_info").is_success
        return False

    def jobs_of(self, run: dg.DagsterRun) -> list[str]:
        return jobs_of(run, self.instance.get_dynamic_partitions("jobs"))

    def runs_of(self, key: str) -> Sequence[dg.DagsterRun]:
        """Of the batch of jobs that this one belongs to."""
        return (
            self.instance.get_runs(dg.RunsFilter(tags={BATCH: key.rsplit("-", 1)[0]}))
            if "-batch" in key
            else (self.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key})))
        )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def processes(self) -> list[psutil.Process]:
        """All processes with this service's data, itself included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("WAN_DATA_ROOT") == str(self.data)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(params=JOBS)
def service(request, tiny_snapshot, monkeypatch) -> Iterator[Service]:
    """In memory if possible, because SQLite waits for the disk in each event."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30 else None
    folder = Path(tempfile.mkdtemp(prefix="wan-", dir=parent))
    service = Service(folder, tiny_snapshot, request.param)
    monkeypatch.setattr("tempfile.tempdir", str(service.temporary))
    service.start()
    try:
        yield service
    finally:
        service.stop()
        for process in service.processes():
            process.kill()
        if kept := os.environ.get("WARM_LOAD_KEEP"):
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("socket"))
        shutil.rmtree(folder)


class Watcher(threading.Thread):
    """Looks at all ranks several times a second: no two of them may have the same device."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.clashes: list[str] = []
        self.keepers: set[str] = set()
        """Folders of all launches that were seen."""
        self.stopped = threading.Event()
        self._devices: dict[tuple[int, float], str | None] = {}

    def run(self) -> None:
        while not self.stopped.wait(0.2):
            if clash := self.clash():
                # A process that has released its lock may need a moment to end.
                time.sleep(0.05)
                if clash == self.clash():
                    self.clashes.append(clash)

    def clash(self) -> str | None:
        ranks = self.ranks()
        twice = [device for device, count in Counter(device for _, device in ranks).items() if count > 1]
        return str(sorted(rank for rank in ranks if rank[1] in twice)) if twice else None

    def ranks(self) -> list[tuple[int, str]]:
        """Process ids of all ranks, with their devices."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                me = process.pid, process.create_time()
                if me not in self._devices:
                    self._devices[me] = self._device_of(process)
                if (device := self._devices[me]) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.pid, device))
        return found

    def _device_of(self, process: psutil.Process) -> str | None:
        variables = process.environ()
        if variables.get("WAN_DATA_ROOT") != str(self.service.data) or "WAN_LAUNCH" not in variables:
            return None
        self.keepers.add(variables["WAN_LAUNCH"])
        return Path(variables["WAN_LEASES"]).name if "RANK" in variables else None


class Killer(threading.Thread):
    """Kills a process now and then; no job is hit twice."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.kills: Counter[str] = Counter()
        self.hit: set[str] = set()
        """Jobs whose run or launch was hit."""
        self.stopped = threading.Event()

    def run(self) -> None:
        for whom in cycle(["step", "keeper", "agent", "rank", "idle keeper", "waiting step", "idle rank"]):
            if self.stopped.wait(KILL_SECONDS):
                return
            end = time.monotonic() + KILL_SECONDS
            while time.monotonic() < end and not self.stopped.wait(0.3):
                with suppress(psutil.Error):
                    if self.kill(whom):
                        self.kills[whom] += 1
                        break

    def kill(self, whom: str) -> bool:
        found = launches.running()
        if whom == "waiting step":
            working = {one.run for one in found}
            runs = self.service.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            return any(self.kill_run(run) for run in runs if run.run_id not in working)
        for one in found:
            if one.state != ("idle" if whom.startswith("idle") else "working") or (one.run is None) != whom.startswith(
                "idle"
            ):
                continue
            run = self.service.instance.get_run_by_id(one.run) if one.run else None
            if run is None and one.run:
                continue
            if whom == "step":
                if self.kill_run(run):
                    return True
                continue
            jobs = self.service.jobs_of(run) if run else []
            if self.hit.intersection(jobs):
                continue
            processes = [psutil.Process(one.pid)]
            while len(processes) < 3 and (children := processes[-1].children()):
                processes.append(children[0])
            number = ["keeper", "agent", "rank"].index(whom.split()[-1])
            if len(processes) <= number:
                continue
            processes[number].kill()
            self.hit.update(jobs)
            return True
        return False

    def kill_run(self, run: dg.DagsterRun) -> bool:
        """Kill the process of a run, which is its step as well."""
        jobs = self.service.jobs_of(run)
        if self.hit.intersection(jobs):
            return False
        for entry in self.service.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            if pid := entry.dagster_event.engine_event_data.metadata.get("pid"):
                psutil.Process(int(str(pid.value))).kill()
                self.hit.update(jobs)
                return True
        return False


class Neighbour(threading.Thread):
    """Another program that takes a device under the lease now and then."""

    def __init__(self, service: Service, watcher: Watcher) -> None:
        super().__init__(daemon=True)
        self.service, self.watcher = service, watcher
        self.waits: list[float] = []
        self.clashes: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(LEASE_SECONDS):
            asked = time.monotonic()
            with leases.lease(self.service.leases, DEVICES, 1, "a neighbour", lambda message: None) as lease:
                self.waits.append(time.monotonic() - asked)
                time.sleep(0.05)
                for _ in range(5):
                    self.clashes += [
                        f"{rank} beside a neighbour" for rank in self.watcher.ranks() if rank[1] in lease.devices
                    ]
                    time.sleep(0.2)


class Client:
    """Posts jobs, waits for them, and cancels some."""

    def __init__(self, service: Service, number: int, keys: list[str], templates: dict[str, Path]) -> None:
        self.service, self.keys, self.templates = service, keys, templates
        self.chance = random.Random(number)
        self.ended: dict[str, str] = {}
        self.cancelled: set[str] = set()

    def run(self) -> None:
        unfinished: dict[str, float] = {}
        """When each is to be cancelled."""
        left = list(self.keys)
        end = time.monotonic() + PATIENCE
        with httpx.Client(base_url=self.service.url, timeout=120) as http:
            while left or unfinished:
                assert time.monotonic() < end, f"not finished: {[*left, *unfinished]}"
                if left and len(unfinished) < UNFINISHED:
                    key = left.pop(0)
                    self.post(http, key)
                    cancels = key.endswith("x")
                    unfinished[key] = time.monotonic() + self.chance.uniform(0, 40) if cancels else float("inf")
                for key in list(unfinished):
                    state = http.get(f"{URL}/{key}").raise_for_status().json()["status"]
                    # A run that is to be retried seems to have failed until its retry is queued.
                    if state in ("succeeded", "cancelled") or (state == "failed" and self.is_final(key)):
                        self.ended[key] = state
                        del unfinished[key]
                    elif time.monotonic() >= unfinished[key] and key not in self.cancelled:
                        self.cancelled.add(key)
                        answer = http.delete(f"{URL}/{key}")
                        assert answer.status_code in (200, 202, 409), answer.text
                time.sleep(POLL_SECONDS)

    def post(self, http: httpx.Client, key: str) -> None:
        shutil.copytree(self.templates["raw" if "raw" in key else "ready"], self.service.data / "jobs" / key)
        body = {"src_root_path": f"data/jobs/{key}", "sampling_steps": self.chance.choice([1, 2, 2, 4])}
        while (answer := http.post(URL, json=body, headers={"Idempotency-Key": key})).status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
        assert answer.status_code == 202, answer.text

    def is_final(self, key: str) -> bool:
        """Whether no run of a job is unfinished or will be retried."""
        runs = self.service.runs_of(key)
        return all(run.is_finished for run in runs) and not any(
            run.tags.get("dagster/will_retry") == "true" and "dagster/auto_retry_run_id" not in run.tags for run in runs
        )


class BatchClient(Client):
    """Starts runs over several jobs, as the drop folder and Dagster's UI do."""

    def run(self) -> None:
        batches: dict[str, list[str]] = {}
        for key in self.keys:
            batches.setdefault(key.rsplit("-", 1)[0], []).append(key)
        end = time.monotonic() + PATIENCE
        for batch, keys in batches.items():
            self.start(batch, keys)
            while not self.is_final(keys[0]):
                assert time.monotonic() < end, f"not finished: {batch}"
                time.sleep(POLL_SECONDS)
            newest = max(self.service.runs_of(keys[0]), key=lambda run: run.tags.get("dagster/retry_number", "0"))
            self.ended |= dict.fromkeys(keys, "succeeded" if newest.is_success else newest.status.value)

    def start(self, batch: str, keys: list[str]) -> None:
        for number, key in enumerate(keys):
            kind = "raw" if number % 4 == 1 else "ready"
            shutil.copytree(self.templates[kind], self.service.data / "jobs" / key)
        # All at once, so that they are neighbours.
        self.service.instance.add_dynamic_partitions("jobs", keys)
        tags = partition_tags(keys) | {BATCH: batch}
        parameters = {
            "selector": {
                "repositoryLocationName": "wan_orchestration",
                "repositoryName": "__repository__",
                "jobName": "make_videos",
            },
            "runConfigData": "{}",
            "mode": "default",
            "executionMetadata": {"tags": [{"key": name, "value": value} for name, value in tags.items()]},
        }
        url = f"http://127.0.0.1:{self.service.dagster_port}/graphql"
        body = {"query": LAUNCH, "variables": {"parameters": parameters}}
        answer = httpx.post(url, json=body, timeout=120).raise_for_status().json()
        assert answer["data"]["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess", answer


KINDS = "acaabacaac"
"""First letters of names, see `two_snapshots`."""


def single_keys(client: int, count: int) -> list[str]:
    """Names of jobs with a run each: some raw (their clips are made), some cancelled (x)."""
    return [
        f"{KINDS[n % len(KINDS)]}-{client}-{n:03d}{'-raw' if n % 4 == 1 else ''}{'-x' if n % 6 == 4 else ''}"
        for n in range(count)
    ]


def batch_keys(client: int, count: int) -> list[str]:
    return [
        f"{KINDS[n // BATCH_JOBS % len(KINDS)]}-{client}-batch{n // BATCH_JOBS:02d}-{n % BATCH_JOBS}"
        for n in range(count)
    ]


def test_many_jobs(service, request, make_job, make_raw_job, capsys):
    jobs = JOBS[request.node.callspec.params["service"]]
    templates = {"ready": make_job("ready"), "raw": make_raw_job("raw", frames=5)}
    # Two clients send a job at a time, two send batches.
    single = jobs // 10
    clients = [Client(service, number, single_keys(number, single), templates) for number in (0, 1)]
    batches = jobs // 2 - single
    clients += [BatchClient(service, number, batch_keys(number, batches), templates) for number in (2, 3)]
    watcher, killer = Watcher(service), Killer(service)
    neighbour = Neighbour(service, watcher)
    helpers = [watcher, killer, neighbour]
    for helper in helpers:
        helper.start()
    began = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        for future in as_completed([pool.submit(client.run) for client in clients]):
            future.result()
    seconds = time.monotonic() - began
    for helper in (killer, neighbour):
        helper.stopped.set()
        helper.join(120)
    after = time.monotonic()
    wait_until(lambda: not launches.running() and not watcher.ranks(), WARM_SECONDS + GONE_SECONDS)
    gone = time.monotonic() - after
    left = list(launches.root().iterdir())

    ended = {key: state for client in clients for key, state in client.ended.items()}
    cancelled = {key for client in clients for key in client.cancelled}
    runs = service.instance.get_runs()
    by_job = {key: [run for run in runs if key in service.jobs_of(run)] for key in ended}
    videos = made_videos(service.instance, ended)
    warm = Counter(
        result.warm for key in ended if (result := Result.read(service.data / "videos" / key / "result.json"))
    )
    figures = {
        "jobs": len(ended),
        "seconds": round(seconds),
        "jobs a minute": round(60 * len(ended) / seconds, 1),
        "ended": Counter(ended.values()),
        "runs": len(runs),
        "run states": Counter(run.status.value for run in runs),
        "kills": killer.kills,
        "launches started": len(watcher.keepers),
        "launches taken over": sum(
            entry.user_message.startswith("Takes over ")
            for run in runs
            for entry in service.instance.all_logs(run.run_id)
        ),
        "videos of warm launches": warm[True],
        "videos of new launches": warm[False],
        "leases of a neighbour": len(neighbour.waits),
        "longest wait of a neighbour": round(max(neighbour.waits, default=0), 1),
        "gone after": round(gone, 1),
    }
    with capsys.disabled():
        print(f"\n{json.dumps(figures, indent=2)}")

    # None is lost.
    lost = {key: state for key, state in ended.items() if state != "succeeded" and key not in cancelled}
    assert not lost, reasons(service, lost)
    assert not [key for key, state in ended.items() if state == "failed"]
    for key, state in ended.items():
        succeeded = [run for run in by_job[key] if run.is_success]
        assert len(succeeded) == (state == "succeeded"), f"{key}: {by_job[key]}"
        assert len(by_job[key]) == 1 or key in killer.hit, f"{key}: {by_job[key]}"
        # A retry does not make what an earlier try of its run has recorded.
        assert videos[key] == (state == "succeeded") or key in cancelled, f"{key}: made {videos[key]} times"
    assert not watcher.clashes and not neighbour.clashes
    assert not left, left

    # A warm launch ends with the service.
    last = Client(service, 9, ["a-last"], templates)
    last.run()
    assert [one.state for one in launches.running()] in (["idle"], ["working"])
    service.stop()
    wait_until(lambda: not service.processes(), GONE_SECONDS)
    # Removes the folder of a keeper that was still the child of its run, and so was killed with the service.
    assert not launches.running()
    assert not list(launches.root().iterdir())
    for device in DEVICES:
        with leases.lease(service.leases, [device], 1, "a test", lambda message: pytest.fail(message)):
            pass
    watcher.stopped.set()


def made_videos(instance: dg.DagsterInstance, keys) -> Counter[str]:
    """How many times each job's video was materialized."""
    records = instance.fetch_materializations(dg.AssetKey("generated_video"), limit=10_000).records
    return Counter(dict.fromkeys(keys, 0)) + Counter(str(record.partition_key) for record in records)


def reasons(service: Service, keys) -> str:
    """The ends of the logs of some jobs' runs."""
    lines = []
    for key in keys:
        for run in service.runs_of(key):
            entries = service.instance.all_logs(run.run_id)
            lines += [f"{key}, {run.run_id[:8]}, {run.status.value}:", *(e.user_message for e in entries[-8:])]
    return "\n".join(lines)
