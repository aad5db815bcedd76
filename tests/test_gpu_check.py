"""The driver of `benchmarks/gpu_check.py`, with parts that take no time."""

import ast
import sys
import time
from pathlib import Path

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run the fake parts of these names; returns whether all is good, the rows and the table."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from gpu_parts.driver import LEAVE_SECONDS, Part, run
    from gpu_parts.record import Work, read
    from gpu_parts.report import table

    def run_parts(*names, seconds=30.0, left=60.0, correctness=True):
        parts = [Part(name, seconds, f"fake_gpu_parts:{name}", correctness) for name in names]
        work = Work(tmp_path, tmp_path, "cuda" if "cuda" in names else "cpu", False, None)
        good = run(parts, work, time.monotonic() + LEAVE_SECONDS + left, lambda: None)
        rows = read(tmp_path)
        return good, rows, table(rows, names, price=3.0)

    yield run_parts
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpu_parts"]:
        del sys.modules[name]


def ends(rows):
    return {row["part"]: (row["status"], row["why"]) for row in rows if "status" in row}


def test_a_part_that_breaks_stops_no_other_and_speed_does_not_decide(check):
    good, rows, table = check("breaks", "cannot", "good", correctness=False)
    assert good
    assert ends(rows)["breaks"][0] == "failed"
    assert "no such kernel" in ends(rows)["breaks"][1]
    assert ends(rows)["cannot"] == ("skipped", "needs a CUDA device")
    assert ends(rows)["good"] == ("done", "")
    assert "| speed | 1.5 |  | <= 2: yes |" in table
    assert "| before | 1 |" in table


def test_a_check_that_is_not_met_fails_the_whole(check):
    good, rows, table = check("wrong", "good")
    assert not good
    assert ends(rows) == {"wrong": ("failed", "sum"), "good": ("done", "")}
    assert "| sum | 4 | 3: NO |" in table
    assert "| after it | 5 |" in table


def test_what_no_longer_fits_is_skipped(check):
    good, rows, _ = check("good", "wrong", seconds=30, left=10)
    assert good
    assert {status for status, _ in ends(rows).values()} == {"skipped"}
    assert "of about 30 s" in ends(rows)["good"][1]


@pytest.mark.parametrize("seconds, left, status", [(2, 60, "failed"), (4, 3, "cut off")])
def test_a_part_over_its_time_is_killed_with_its_children_and_leaves_its_rows(check, seconds, left, status):
    good, rows, table = check("hangs", seconds=seconds, left=left)
    assert good is (status == "cut off")
    assert ends(rows)["hangs"][0] == status
    (child,) = [row["figures"]["pid"] for row in rows if "figures" in row]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert "| child |" in table


def test_parts_run_again_replace_their_rows(check):
    check("good")
    _, rows, _ = check("good", "cannot")
    assert [row["part"] for row in rows if "status" in row] == ["good", "cannot"]


def test_every_part_is_a_function(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_check import PARTS

    for part in PARTS:
        module, _, function = part.where.partition(":")
        code = ast.parse((BENCHMARKS / f"{module.replace('.', '/')}.py").read_text())
        assert function in {one.name for one in code.body if isinstance(one, ast.FunctionDef)}, part.name
