"""Takes up jobs from the drop folder."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import dagster as dg

from wan_orchestration.defs.jobs.assets import observe, rejected
from wan_orchestration.defs.jobs.cursor import Known, Memory
from wan_orchestration.defs.jobs.loose_files import loose
from wan_orchestration.defs.jobs.run_requests import Ask, already_run, at_work, group, make_videos, request, urgency
from wan_orchestration.defs.jobs.scan import FolderState, scan
from wan_orchestration.defs.partitions import jobs, without_output
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.service import DropSettings
from wan_orchestration.settings.variables import take_in
from wan_orchestration.weights import hub

# What is done at each look, so that it takes a second or two whatever was dropped; the rest waits for the next. Dagster
# takes 6 ms to add a partition, about as long to note an event, and 20 ms to plan a job of a run.
READING_SECONDS = 0.3
"""Contents are read for about so long."""
OBSERVED, REGISTERED = 50, 50
"""Changed jobs whose contents are noted, new jobs that become partitions."""
CONSIDERED = 500
"""Jobs that are thought about."""
STARTED = 8
"""Jobs whose runs are started, or as many as one run has."""
LISTED = 20
"""Folders and files named in the sensor's tick."""


@dataclass
class Reading:
    """What came of looking into the folders that are new or changed."""

    still: set[str] = field(default_factory=set)
    """Folders that nothing is being copied into."""
    unread: int = 0
    """Folders left to the next look."""
    observations: list[dg.AssetObservation] = field(default_factory=list)


@dg.sensor(
    job=make_videos,
    minimum_interval_seconds=validate(DropSettings, {}).interval_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def drop_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Makes each complete job folder a partition and starts a run for it, and again when its content changes.

    Folders that cannot be used, and files beside them, are listed here and in `rejected_folders`. The partition of a
    folder that is gone goes too, unless there is output for it.
    """
    settings, instance, root = validate(DropSettings, {}), context.instance, environment().jobs_root
    if not root.is_dir():
        return dg.SkipReason(f"{root} does not exist yet")
    # Before the folders, lest a job that is registered meanwhile be taken for one whose folder is gone.
    registered = instance.get_dynamic_partitions("jobs")
    folders = {folder.path.name: folder for folder in scan(root)}
    memory, remembered = Memory.read(instance), Memory.read(instance)
    has_partition = set(registered)
    reading = read(folders, memory, has_partition, settings)
    usable = sorted((known.ask for known in memory.folders.values() if known.ask), key=urgency)
    new = [ask.key for ask in usable if ask.key not in has_partition][:REGISTERED]
    gone = without_output(instance, [key for key in registered if key not in folders])
    waiting = [ask for ask in usable if not memory.folders[ask.key].taken and ask.key in reading.still]
    # The most urgent of them; there may be thousands, which then go on at the next look.
    waiting = waiting[:CONSIDERED]
    for key in already_run(instance, waiting):
        memory.folders[key].taken = True
    waiting = [ask for ask in waiting if not memory.folders[ask.key].taken]
    busy = at_work(instance, registered) if gone or waiting else set()
    gone = [key for key in gone if key not in busy and not (root / key).is_dir()]
    obstacle = _obstacle(settings) if waiting else None
    runs: list[list[Ask]] = []
    if obstacle is None:
        order = [key for key in registered if key not in gone] + new
        runs = group((ask for ask in waiting if ask.key not in busy), order, settings.max_jobs_per_run)
        sums = accumulate(map(len, runs))
        few = [run for run, jobs in zip(runs, sums, strict=True) if jobs <= STARTED] or runs[:1]
        runs = few[: settings.max_runs_per_tick]
    if memory != remembered:
        memory.write(instance)

    reasons = {name: known.reason for name, known in sorted(memory.folders.items()) if known.reason}
    reasons |= loose(root, time.time() - settings.settle_seconds)
    table_of = hashlib.sha256(repr(reasons).encode()).hexdigest()[:16] if reasons else ""
    said = [
        f"{len(folders)} job folders, {len(folders) - len(reading.still)} of them being copied, {len(new)} new, "
        f"{reading.unread} to be read at the next look; {len(gone)} partitions without folder or output removed",
        f"{len(waiting)} jobs to run, {sum(map(len, runs))} of them now in {len(runs)} runs",
        *([f"waiting: {obstacle}"] if obstacle else []),
        *_listed(reasons),
    ]
    context.log.info("\n".join(said))
    changes = jobs.build_delete_request(gone), jobs.build_add_request(new)
    return dg.SensorResult(
        run_requests=[request(run) for run in runs],
        dynamic_partitions_requests=[change for change in changes if change.partition_keys],
        asset_events=[*reading.observations, *([rejected(reasons)] if table_of != (context.cursor or "") else [])],
        cursor=table_of,
        skip_reason=None if runs else "\n".join(said),
    )


def read(folders: Mapping[str, FolderState], memory: Memory, registered: set[str], settings: DropSettings) -> Reading:
    """Brings the memory up to date with the folders, the contents of the still ones included."""
    reading, now, started = Reading(), time.time(), time.monotonic()
    for name in memory.folders.keys() - folders.keys():
        del memory.folders[name]
    defaults = f"{take_in(GenerateSettings, {})!r}{take_in(PreprocessSettings, {})!r}"
    defaults = hashlib.sha256(defaults.encode()).hexdigest()[:16]
    for name, folder in folders.items():
        if not folder.still(now, settings.settle_seconds):
            continue
        reading.still.add(name)
        known = memory.folders.get(name)
        if known and (known.signature, known.defaults) == (folder.signature, defaults):
            continue
        if time.monotonic() - started > READING_SECONDS or len(reading.observations) >= 2 * OBSERVED:
            reading.unread += 1
            continue
        memory.folders[name] = found = Known(folder.signature, defaults)
        try:
            job = Job.open(folder.path)
            same = known is not None and known.signature == folder.signature and known.fingerprint
            found.fingerprint = known.fingerprint if known and same else job.fingerprint()
            found.ask = Ask.of(job, found.fingerprint)
            found.taken = known is not None and known.taken and known.content == found.content
            # Runs note what new jobs hold; of others it is to be seen that their videos are out of date.
            if name in registered:
                reading.observations += observe(job, found.fingerprint)
        except (BadInput, OSError) as error:
            found.ask, found.reason = None, str(error)
    return reading


def _obstacle(settings: DropSettings) -> str | None:
    """Why no run is started just now."""
    if not settings.run:
        return "WAN_DROP_RUN is off"
    try:
        hub.resolve(environment(), allow_download=False)
    except BadInput as error:
        # A download of 50 GB should not begin because a UI was opened.
        return str(error)
    return None


def _listed(reasons: Mapping[str, str]) -> Iterator[str]:
    yield from list(reasons.values())[:LISTED]
    if len(reasons) > LISTED:
        yield f"and {len(reasons) - LISTED} more, see rejected_folders"
