"""Processes of this machine that share an export: started, watched, and stopped as a whole."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any, TypeVar

from qcompile.errors import InputError, InternalError, LostError, QCompileError
from qcompile.group.faults import Fault
from qcompile.group.joined import invited, join, leave
from qcompile.run.memory_budget import SHARE, Memory, free_host_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from qcompile.choice.export_options import Options
    from qcompile.notes import Progress

__all__ = ["on_devices"]

#: Seconds for a process to clear up behind itself before it is killed, and for the reason of a fault to come in.
PATIENCE, HEARING = 10.0, 3.0

#: Faults by which processes say that another one has failed, the more telling first.
_ECHOES = (InternalError.__name__, LostError.__name__)

T = TypeVar("T")


def on_devices(
    run: Callable[..., T], options: Options, devices: int, progress: Progress | None = None
) -> T:  # fmt: skip
    """The result of a run that so many processes of this machine share, or those that ``torchrun`` started.

    Args:
        run: called with options and ``progress=``.
        options: its options, of which the group is set here.
        devices: how many processes; not read where several have been started.
        progress: told of the steps of the first.

    Raises:
        InputError: if there cannot be so many, or something that is given cannot be sent to another process.
        LostError: if one of them is killed.
        Exception: whatever the run raises in any of them.
    """
    if invited():
        return _in_group(run, options, progress)
    _check_devices(devices, options.device)
    if devices == 1:
        return run(options, progress=progress)
    return _run_members(_in_group, (run, options), devices, progress)


def _in_group(run: Callable[..., T], options: Options, progress: Progress | None) -> T:
    group = join(options.device)
    with group.together():
        return run(replace(options, group=group, memory=_shared(options.memory)), progress=progress)


def _shared(memory: Memory) -> Memory:
    """The budget of one process, where nothing was said: those of a machine share its RAM."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return memory if memory.host is not None else replace(memory, host=int(SHARE * free_host_bytes()) // beside)


def _check_devices(count: int, device: str) -> None:
    """Refuse a number of processes that cannot be.

    Raises:
        InputError: if it is less than one, or there are fewer GPUs.
    """
    if count < 1:
        raise InputError(f"--devices {count} leaves nobody to work")
    if device == "cuda" and count > 1:
        import torch

        there = torch.cuda.device_count()
        if count > there:
            raise InputError(f"--devices {count} is more than the {there} GPUs of this machine")


def _run_members(work: Callable[..., T], given: Sequence[Any], count: int, progress: Progress | None = None) -> T:
    """The result that the first of some processes has of a function which all run, of what is given and a progress."""
    try:
        sent = pickle.dumps((work, tuple(given)))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(f"what is given cannot go to other processes, as --devices needs: {error}") from error
    scratch = tempfile.mkdtemp(prefix="qcompile-")
    try:
        with _meeting() as port, _started(sent, count, port, scratch) as (processes, ends):
            return _watched(processes, ends, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _meeting() -> Iterator[int]:
    """The port at which the processes find each other."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


@contextmanager
def _started(sent: bytes, count: int, port: int, scratch: str) -> Iterator[tuple[list[SpawnProcess], list[Connection]]]:
    """Processes at work, and what they say; none is left in the end."""
    import torch

    context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // count)
    processes, ends = [], []
    try:
        for rank in range(count):
            own, other = context.Pipe()
            places = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            places |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), count)
            environment = {name: str(value) for name, value in places.items()} | {
                "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": str(threads),
            }  # fmt: skip
            process = context.Process(target=_member, args=(sent, environment, scratch, other), daemon=True)
            process.start()
            other.close()
            processes.append(process)
            ends.append(own)
        yield processes, ends
    finally:
        _stop(processes)
        for end in ends:
            end.close()


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """Ask processes to end, and kill those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _watched(processes: Sequence[SpawnProcess], ends: Sequence[Connection], progress: Progress | None) -> Any:
    """The result of the first process, when all are done.

    Raises:
        Exception: the fault of one of them; of one that died without a word, that it did.
    """
    results: dict[int, Any] = {}
    faults: list[tuple[Fault, str]] = []
    silent: list[int] = []
    listening = dict(enumerate(ends))
    while listening:
        ready = connection.wait(listening.values(), HEARING if faults or silent else None)
        for rank, end in [item for item in listening.items() if item[1] in ready]:
            word, said = _word(end)
            if word == "progress":
                if progress is not None:
                    progress(*said)
                continue
            del listening[rank]
            if word == "done":
                results[rank] = said[0]
            elif word == "failed":
                faults.append((said[0], said[1]))
            else:
                silent.append(rank)
        if not ready or (faults and _first(faults)[0].kind not in _ECHOES):
            break
    if not faults and not silent:
        return results[0]
    fault = _first(faults) if faults else None
    if silent and (fault is None or fault[0].kind == LostError.__name__):
        raise LostError(_end_of(processes[silent[0]], silent[0], len(processes)))
    assert fault is not None, "either a process died, or it told why"
    raise _fault(*fault)


def _word(end: Connection) -> tuple[str, list[Any]]:
    """The next word of a process, and what belongs to it; nothing of one that is gone."""
    try:
        word, *said = end.recv()
    except (EOFError, OSError):
        return "", []
    return word, said


def _first(faults: Sequence[tuple[Fault, str]]) -> tuple[Fault, str]:
    """The fault that the others follow from."""
    return min(faults, key=lambda pair: _ECHOES.index(pair[0].kind) + 1 if pair[0].kind in _ECHOES else 0)


def _fault(fault: Fault, trace: str) -> Exception:
    error = fault.error()
    if not isinstance(error, QCompileError):
        error.add_note(trace)
    return error


def _end_of(process: SpawnProcess, rank: int, count: int) -> str:
    """How a process ended that said nothing."""
    process.join(PATIENCE)
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    return f"process {rank} of {count} {how}; the others were stopped, and nothing was written"


# -- in a process ------------------------------------------------------------------------------------------------------


def _member(sent: bytes, environment: dict[str, str], scratch: str, end: Connection) -> None:
    """Do the work, and tell the process that started this one."""
    os.environ |= environment
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    tempfile.tempdir = scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it stops the others who got it too
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    rank = int(environment["RANK"])

    def tell(step: str, done: int, total: int) -> None:
        end.send(("progress", step, done, total))

    try:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        work, given = pickle.loads(sent)
        found = work(*given, tell if rank == 0 else None)
        end.send(("done", found if rank == 0 else None))
        leave()
    except Exception as error:
        with suppress(OSError):
            end.send(("failed", Fault.of(error, rank), traceback.format_exc()))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(*_: object) -> None:
    """Clear up, and end."""
    raise SystemExit(1)


def _follow(parent: int) -> None:
    """End with the process that started this one, if that is killed."""
    import time

    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
