"""Real processes compete for leases."""

import subprocess
import sys
import time
from pathlib import Path

from wan_orchestration.protocol import leases

WORK = """
import sys, time
from pathlib import Path
from wan_orchestration.protocol import leases

folder, name, count, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with leases.lease(folder / "leases", ["a", "b"], count, name, lambda message: print(message, flush=True)) as lease:
    for device in lease.devices:
        (folder / f"at-work-{device}").mkdir()
    with (folder / "order").open("a") as order:
        order.write(name + "\\n")
    time.sleep(seconds)
    for device in lease.devices:
        (folder / f"at-work-{device}").rmdir()
"""


def work(folder: Path, name: str, count: int, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WORK, str(folder), name, str(count), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_eight_at_once_on_two_devices(tmp_path):
    workers = [work(tmp_path, f"job-{n}", 1, 0.3) for n in range(8)]
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    # mkdir fails in a process that shares a device with another.
    assert [worker.returncode for worker in workers] == [0] * 8
    assert any("Waits for 1 of a, b:" in output for output in outputs)
    assert not list((tmp_path / "leases" / "queue").iterdir())


def test_first_come_first_served_even_if_the_first_wants_more(tmp_path):
    workers = [work(tmp_path, "holder", 1, 3)]
    wait_for(tmp_path / "order")
    for name, count in [("both", 2), ("one", 1)]:
        workers.append(work(tmp_path, name, count, 0.1))
        wait_for_ticket(tmp_path, name)
    assert "a is held by holder, since " in workers[1].stdout.readline()
    assert workers[2].stdout.readline() == "Waits for 1 of a, b: both comes first\n"
    for worker in workers:
        worker.communicate(timeout=60)
    assert (tmp_path / "order").read_text().split() == ["holder", "both", "one"]


def test_a_lease_lasts_until_its_last_holder_ends(tmp_path):
    code = "import sys, time; from pathlib import Path; from wan_orchestration.protocol.leases import hold\n"
    code += "hold([Path(sys.argv[1])]); print('holds', flush=True); time.sleep(600)"
    with leases.lease(tmp_path, ["a"], 1, "first", print) as lease:
        other = subprocess.Popen([sys.executable, "-c", code, str(lease.files[0])], stdout=subprocess.PIPE)
        assert other.stdout.readline() == b"holds\n"
    waiting = second_process(tmp_path)
    assert waiting.stdout.readline().split(", since")[0] == "Waits for a: a is held by first"
    other.kill()
    other.wait()
    assert waiting.communicate(timeout=30)[0] == "got it\n"


def second_process(folder: Path) -> subprocess.Popen:
    """A process that waits for device a of a folder."""
    code = "import sys; from pathlib import Path; from wan_orchestration.protocol.leases import lease\n"
    code += "with lease(Path(sys.argv[1]), ['a'], 1, 'second', lambda line: print(line, flush=True)): print('got it')"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_for(file: Path):
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_ticket(folder: Path, name: str):
    end = time.monotonic() + 30
    while not any(name in ticket.read_text() for ticket in (folder / "leases" / "queue").iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)
