"""Metrics for Prometheus, read from the Dagster instance at each scrape."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from wan_orchestration.defs.jobs.run_requests import makes_only_clips, makes_videos
from wan_orchestration.protocol import launches

STATES = {
    "queued": [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED],
    "running": [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING],
}
ENDS = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}
READY = "ready"
"""How runs have ended that made clips for somebody to look at."""
BUCKETS = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)

GPU_FIELDS = {
    "utilization.gpu": ("utilization_ratio", "Fraction of the time in which the GPU was busy.", 0.01),
    "memory.used": ("memory_used_bytes", "GPU memory in use.", 2.0**20),
    "memory.total": ("memory_total_bytes", "GPU memory.", 2.0**20),
}
GPU_SECONDS = 5
PAGE = 500
OVERLAP = timedelta(minutes=1)
"""Each scrape begins this long before the previous one, because runs are not stored in the order of their times."""


class RunMetrics(Collector):
    """Counts all runs that wait or run, and the ended runs that make videos or only clips.

    Measures how long those took that have made videos.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.lock = threading.Lock()
        self.counted: set[str] = set()
        self.counted_until: datetime | None = None
        self.ends = dict.fromkeys((*ENDS.values(), READY), 0)
        self.seconds: list[float] = []
        self.buckets = dict.fromkeys(BUCKETS, 0)
        self.sum, self.count = 0.0, 0

    def collect(self) -> Iterator[Metric]:
        unfinished = GaugeMetricFamily("wan_runs", "Runs that wait or run.", labels=["status"])
        for state, statuses in STATES.items():
            unfinished.add_metric([state], self.instance.get_runs_count(dg.RunsFilter(statuses=statuses)))
        yield unfinished
        with self.lock:
            self._count()
            ended = CounterMetricFamily("wan_runs_ended", "Runs that have ended.", labels=["status"])
            for state, number in self.ends.items():
                ended.add_metric([state], number)
            yield ended
            cumulated = [(str(float(le)), float(number)) for le, number in self.buckets.items()]
            yield HistogramMetricFamily(
                "wan_run_seconds",
                "Wall time of runs that succeeded.",
                buckets=[*cumulated, ("+Inf", float(self.count))],
                sum_value=self.sum,
            )
        yield from _launches()
        yield from _gpus()

    def _count(self) -> None:
        """Count the runs that ended since the last scrape; in a new process, all."""
        cursor = None
        filters = dg.RunsFilter(statuses=list(ENDS), updated_after=self.counted_until and self.counted_until - OVERLAP)
        while records := self.instance.get_run_records(filters, limit=PAGE, cursor=cursor):
            for record in records:
                run, cursor = record.dagster_run, record.dagster_run.run_id
                self.counted_until = max(self.counted_until or record.update_timestamp, record.update_timestamp)
                only_clips = makes_only_clips(run)
                if run.run_id in self.counted or not (only_clips or makes_videos(run)):
                    continue
                self.counted.add(run.run_id)
                self.ends[READY if only_clips and run.is_success else ENDS[run.status]] += 1
                if not only_clips and run.is_success and record.start_time and record.end_time:
                    seconds = record.end_time - record.start_time
                    self.sum, self.count = self.sum + seconds, self.count + 1
                    for bound in self.buckets:
                        self.buckets[bound] += seconds <= bound
            if len(records) < PAGE:
                return


def _launches() -> Iterator[Metric]:
    """The launches of this machine."""
    found = launches.running(memory=True)
    number = GaugeMetricFamily("wan_launches", "Launches that hold devices.", labels=["state"])
    for state in ("working", "idle", "leaving"):
        number.add_metric([state], sum(one.state == state for one in found))
    yield number
    memory = GaugeMetricFamily("wan_launch_memory_bytes", "Host memory of a launch.", labels=["devices"])
    for one in found:
        memory.add_metric([",".join(one.devices)], one.memory_bytes or 0)
    yield memory


def _gpus() -> Iterator[Metric]:
    """Utilization and memory of each GPU, if there is an nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return
    query = ["nvidia-smi", f"--query-gpu=index,{','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    for column, (name, text, unit) in enumerate(GPU_FIELDS.values(), 1):
        gauge = GaugeMetricFamily(f"wan_gpu_{name}", text, labels=["gpu"])
        for row in rows:
            # A GPU may report "[N/A]".
            if row[column].replace(".", "", 1).isdecimal():
                gauge.add_metric([row[0]], float(row[column]) * unit)
        yield gauge
