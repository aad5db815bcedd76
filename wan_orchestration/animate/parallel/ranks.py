"""The ranks: processes that torchrun started to make one video together. How they meet, agree and fail together.

Tensors go through process groups; plans and errors go through torchrun's store, which still works when a group is stuck
because one of its ranks has failed.
"""

import gc
import json
import pickle
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
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

from wan_orchestration.animate.memory.room import ran_out_of_memory
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import World

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For hangs. A rank that fails is noticed within `POLL_SECONDS`."""
POLL_SECONDS = 0.1
LEAVE_SECONDS = 5.0
"""How long a rank may take to leave a section that another rank has failed in."""


class RankFailed(RuntimeError):
    """Another rank could not go on; the message says which and why. Its own output has the traceback."""


class Ranks:
    """This process among those that make one video; alone unless torchrun started several.

    Rank 0 leads: it alone decides, writes and reports. Use as a context manager: leaving it ends the wait of the ranks
    that follow.
    """

    rank = 0
    size = 1
    local_rank = 0
    usable = True
    """False once a rank is stuck in a collective that another has left: nothing can be done together any more."""

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
        """Rank 0 gives a value, the others wait for it and get it. None tells them to leave."""
        return value

    def together(self, section: Callable[[], T]) -> T:
        """Run a section that communicates. No rank returns before all are through.

        Raises:
            Exception: the section's error, where this rank failed.
            BadInput, torch.OutOfMemoryError, RankFailed: the error of the rank that failed first, on all others.
        """
        return section()

    def sum(self, x: Tensor) -> Tensor:
        """Add up the x of all ranks, in place."""
        return x

    def share(self, x: Tensor) -> Tensor:
        """Give every rank the values of rank 0's x, in place."""
        return x

    def mesh(self, device: torch.device, branches: int = 1) -> DeviceMesh | None:
        """Ranks as ("branch", "sequence"): each row of the mesh splits the tokens of one guidance branch."""
        return None


class TorchrunRanks(Ranks):
    """The ranks of a torchrun launch, connected by NCCL for CUDA tensors and gloo for those on the CPU."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.local_rank = world.rank, world.world_size, world.local_rank
        self._store: Any = next(rendezvous("env://", world.rank, world.world_size))[0]
        # A second connection: one that waits within a collective's set-up would keep the watching thread out.
        self._watch: Store = self._store.clone()
        self._announced = self._sections = self._connections = 0
        self._stuck: Future[Any] | None = None
        self._meshes: dict[tuple[str, int], DeviceMesh] = {}
        # Rank 0 may come hours later, having downloaded the weights.
        self._tell("arrived") if self.leads else self._poll(lambda: self._watch.check(["arrived"]))
        self._connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.leads:
            self.announce(None)
        if self.usable and (error is None or isinstance(error, Exception)):
            # A process that leaves first would break the connections of the others.
            self._meet("end")
            dist.destroy_process_group()
        elif self._stuck:
            # Until the processes that have failed are gone: one that ends while a thread is in gloo is aborted.
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
        outcome: Future[T] = Future()
        # In a thread, because a collective that another rank never joins cannot be interrupted.
        Thread(target=_carry_out, args=(section, outcome), name=name, daemon=True).start()
        failed = [f"{name}/failed"]
        while not (wait([outcome], POLL_SECONDS).done or self._watch.check(failed)):
            pass
        if outcome.done() and not (error := outcome.exception()) and self._meet(name, failed):
            return outcome.result()
        if outcome.done() and (error := outcome.exception()):
            self._watch.compare_set(failed[0], "", _describe(self.rank, error))
        cause = json.loads(self._watch.get(failed[0]))
        self._separate(name, outcome)
        if cause["rank"] == self.rank:
            outcome.result()
        raise _rebuild(cause)

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

    def _separate(self, name: str, outcome: "Future[Any]") -> None:
        """After a failure: connect anew if every rank has left the section, else be unusable from now on."""
        self._meshes.clear()
        if torch.cuda.is_available():
            # Frees ranks that wait in a collective of NCCL's.
            dist.distributed_c10d._abort_process_group()
        if wait([outcome], LEAVE_SECONDS).done:
            # Frees ranks that wait in a collective of gloo's: connections are closed once nothing refers to the groups,
            # such as the variables of a section that has failed.
            if dist.is_initialized():
                dist.destroy_process_group()
            if error := outcome.exception():
                traceback.clear_frames(error.__traceback__)
            gc.collect()
            self._watch.add(f"{name}/left", 1)
        else:
            self._stuck = outcome
        self._watch.add(f"{name}/seen", 1)
        limit = time.monotonic() + 2 * LEAVE_SECONDS
        self._poll(lambda: self._count(f"{name}/seen") == self.size or time.monotonic() > limit)
        self.usable = self._count(f"{name}/left") == self.size
        if self.usable:
            self._connect()

    def _meet(self, name: str, unless: list[str] | None = None) -> bool:
        """Wait until all ranks are here; False if one of the keys `unless` turns up first."""
        self._tell(f"{name}/here")
        self._poll(
            lambda: self._count(f"{name}/here") == self.size or (unless is not None and self._watch.check(unless))
        )
        return self._count(f"{name}/here") == self.size

    def _tell(self, key: str) -> None:
        self._watch.add(key, 1)

    def _count(self, key: str) -> int:
        return self._watch.add(key, 0)

    def _poll(self, ready: Callable[[], bool]) -> None:
        # Not `Store.wait`: Python handles no signal while that blocks.
        while not ready():
            time.sleep(POLL_SECONDS)


def connect(world: World) -> Ranks:
    """The ranks of this launch. With several, returns once all have come."""
    return TorchrunRanks(world) if world.world_size > 1 else Ranks()


def gather(part: Tensor, sizes: list[int], dim: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Parts of all ranks of a group, joined along `dim`; `sizes` are their lengths there, which may differ."""
    # Equal lengths, because gloo refuses others; joined along the first dimension, because NCCL and gloo do only that.
    padded = lengthen(part.movedim(dim, 0), 0, max(sizes)).contiguous()
    whole = padded.new_empty(len(sizes) * len(padded), *padded.shape[1:])
    dist.all_gather_into_tensor(whole, padded, group=group)
    parts = [one[:size] for one, size in zip(whole.split(len(padded)), sizes, strict=True)]
    return torch.cat(parts).movedim(0, dim).contiguous()


def lengthen(x: Tensor, dim: int, length: int) -> Tensor:
    """Zeros appended along a dimension."""
    missing = list(x.shape)
    missing[dim] = length - x.shape[dim]
    return torch.cat([x, x.new_zeros(missing)], dim) if missing[dim] else x


def _carry_out(section: Callable[[], T], outcome: "Future[T]") -> None:
    try:
        outcome.set_result(section())
    except BaseException as error:
        outcome.set_exception(error)


def _describe(rank: int, error: BaseException) -> str:
    kind = "bad_input" if isinstance(error, BadInput) else "memory" if ran_out_of_memory(error) else "other"
    text = str(error) if isinstance(error, _KINDS.get(kind, ())) else f"{type(error).__name__}: {error}"
    return json.dumps({"rank": rank, "kind": kind, "text": text})


def _rebuild(cause: dict[str, Any]) -> Exception:
    if cause["kind"] == "bad_input":
        return BadInput(cause["text"])
    return _KINDS.get(cause["kind"], RankFailed)(f"rank {cause['rank']}: {cause['text']}")


_KINDS: dict[str, type[Exception]] = {"bad_input": BadInput, "memory": torch.OutOfMemoryError}
