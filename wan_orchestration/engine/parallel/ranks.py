"""The ranks: processes that torchrun started to make one video together. How they connect, agree and fail together.

Tensors go through process groups. Plans and errors go through torchrun's store, which still works when a process group
is stuck because one of its ranks has failed.
"""

import gc
import json
import pickle
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.torch_internals import abort_nccl
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import World

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For hangs. Other ranks notice a failed rank within `POLL_SECONDS`."""
POLL_SECONDS = 0.1
LEAVE_SECONDS = 5.0
"""How long a rank may take to leave a section in which another rank has failed."""


class RankFailed(RuntimeError):
    """Another rank failed. The message says which one and why; that rank's own output has the traceback."""


class Ranks:
    """This process among those that make one video. It is alone unless torchrun started several.

    Rank 0 leads: it alone decides, writes and reports. Use as a context manager: when rank 0 leaves it, the other ranks
    stop waiting for announcements.
    """

    rank = 0
    size = 1
    local_rank = 0
    usable = True
    """False once a rank is stuck in a collective that another rank has left. Collectives are then impossible."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def announce(self, value: T | None = None) -> T | None:
        """Send rank 0's value to all ranks. The others wait for it and return it. None tells them to leave."""
        return value

    def together(self, section: Callable[[], T]) -> T:
        """Run a section that communicates. No rank returns before all have succeeded.

        Raises:
            Exception: the section's own error, on the rank that failed first.
            BadInput, torch.OutOfMemoryError, RankFailed: that rank's error, on all other ranks.
        """
        return section()

    def sum(self, x: Tensor) -> Tensor:
        """Add up x over all ranks, in place."""
        return x

    def share(self, x: Tensor) -> Tensor:
        """Overwrite x with rank 0's values on every rank, in place."""
        return x

    def mesh(self, device: torch.device, branches: int = 1) -> DeviceMesh | None:
        """Ranks as ("branch", "sequence"): each row splits the tokens of one guidance branch. None: one rank."""
        return None


class TorchrunRanks(Ranks):
    """The ranks of a torchrun launch. NCCL connects them for CUDA tensors, gloo for CPU tensors."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.local_rank = world.rank, world.world_size, world.local_rank
        self._store: Any = next(rendezvous("env://", world.rank, world.world_size))[0]
        # A second connection, because a section that waits for a collective to be set up blocks the first one.
        self._watch: Store = self._store.clone()
        self._announced = self._sections = self._connections = 0
        self._stuck: Future[Any] | None = None
        self._meshes: dict[tuple[str, int], DeviceMesh] = {}
        # Rank 0 may arrive hours later, after it has downloaded the weights.
        self._tell("arrived") if self.leads else self._poll(lambda: self._watch.check(["arrived"]))
        self._connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.leads:
            self.announce(None)
        if self.usable and (error is None or isinstance(error, Exception)):
            # A process that exits first would break the connections of the others.
            self._meet("end")
            dist.destroy_process_group()
        elif self._stuck:
            # Wait until this rank's stuck section fails, which it does when the failed ranks exit. Exiting during a
            # gloo call would abort this process.
            wait([self._stuck], 2 * LEAVE_SECONDS)

    def announce(self, value: T | None = None) -> T | None:
        self._announced += 1
        key = f"announced/{self._announced}"
        if self.leads:
            self._watch.set(key, pickle.dumps(value).hex())
            return value
        self._poll(lambda: self._watch.check([key]))
        return pickle.loads(bytes.fromhex(self._watch.get(key).decode()))  # noqa: S301 (rank 0 of this launch wrote it)

    def together(self, section: Callable[[], T]) -> T:
        self._sections += 1
        name = f"section/{self._sections}"
        result: Future[T] = Future()
        # In a thread, because nothing can interrupt a collective that another rank never joins.
        Thread(target=_run_into, args=(result, section), name=name, daemon=True).start()
        failure = self._first_failure(name, result)
        if failure is None:
            return result.result()
        self._separate(name, result)
        if failure.rank == self.rank:
            result.result()  # raises the section's own error
        raise failure.rebuild()

    def _first_failure(self, name: str, result: "Future[Any]") -> "_Failure | None":
        """Wait until all ranks have succeeded (None) or one has failed (the first failure)."""
        failed = f"{name}/failed"
        while not (wait([result], POLL_SECONDS).done or self._watch.check([failed])):
            pass
        if result.done():
            if error := result.exception():
                self._watch.compare_set(failed, "", _Failure.of(self.rank, error).dumps())  # keeps an earlier failure
            elif self._meet(name, unless=failed):
                return None
        return _Failure.loads(self._watch.get(failed))

    def sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def share(self, x: Tensor) -> Tensor:
        dist.broadcast(x, src=0)
        return x

    def mesh(self, device: torch.device, branches: int = 1) -> DeviceMesh:
        key = (device.type, branches)
        if key not in self._meshes:
            self._meshes[key] = init_device_mesh(
                device.type, (branches, self.size // branches), mesh_dim_names=("branch", "sequence")
            )
        return self._meshes[key]

    def _connect(self) -> None:
        self._connections += 1
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(f"connection/{self._connections}", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=COLLECTIVE_TIMEOUT,
        )

    def _separate(self, name: str, result: "Future[Any]") -> None:
        """After a failure: reconnect if every rank has left the section, otherwise mark the ranks unusable."""
        self._meshes.clear()
        if torch.cuda.is_available():
            abort_nccl()
        if wait([result], LEAVE_SECONDS).done:
            # This frees ranks that wait in a gloo collective. A connection closes once nothing refers to its group, so
            # the local variables of a failed section are cleared.
            if dist.is_initialized():
                dist.destroy_process_group()
            if error := result.exception():
                traceback.clear_frames(error.__traceback__)
            gc.collect()
            self._watch.add(f"{name}/left", 1)
        else:
            self._stuck = result
        self._watch.add(f"{name}/seen", 1)
        limit = time.monotonic() + 2 * LEAVE_SECONDS
        self._poll(lambda: self._count(f"{name}/seen") == self.size or time.monotonic() > limit)
        self.usable = self._count(f"{name}/left") == self.size
        if self.usable:
            self._connect()

    def _meet(self, name: str, unless: str | None = None) -> bool:
        """Wait until all ranks are here. False if the key `unless` appears first."""
        self._tell(f"{name}/here")
        self._poll(
            lambda: self._count(f"{name}/here") == self.size or (unless is not None and self._watch.check([unless]))
        )
        return self._count(f"{name}/here") == self.size

    def _tell(self, key: str) -> None:
        self._watch.add(key, 1)

    def _count(self, key: str) -> int:
        return self._watch.add(key, 0)

    def _poll(self, ready: Callable[[], bool]) -> None:
        # `Store.wait` would keep Python from handling signals.
        while not ready():
            time.sleep(POLL_SECONDS)


def connect(world: World) -> Ranks:
    """The ranks of this launch. With several, returns once all have arrived."""
    return TorchrunRanks(world) if world.world_size > 1 else Ranks()


@dataclass(frozen=True)
class _Failure:
    """The error of one rank, in a form that other ranks can raise."""

    rank: int
    kind: str
    """A key of `_KINDS`, or "other"."""
    text: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Self:
        kind = "bad_input" if isinstance(error, BadInput) else "memory" if ran_out_of_memory(error) else "other"
        known = isinstance(error, _KINDS.get(kind, ()))
        return cls(rank, kind, str(error) if known else f"{type(error).__name__}: {error}")

    def rebuild(self) -> Exception:
        if self.kind == "bad_input":
            return BadInput(self.text)
        return _KINDS.get(self.kind, RankFailed)(f"rank {self.rank}: {self.text}")

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: bytes) -> Self:
        return cls(**json.loads(text))


_KINDS: dict[str, type[Exception]] = {"bad_input": BadInput, "memory": torch.OutOfMemoryError}


def _run_into(result: "Future[T]", section: Callable[[], T]) -> None:
    try:
        result.set_result(section())
    except BaseException as error:
        result.set_exception(error)
