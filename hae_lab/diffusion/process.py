"""What a run asks of its process: how many threads, and not to be stopped in the middle of a step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from hae_lab.checks import HAELabError
from hae_lab.family import HAEConfig
from hae_lab.profilers.formulas import macs_formulas

# of one image: below, threads wait for each other longer than they work, most of all on a busy machine
SMALL_MACS = 10**9


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for arithmetic inside, as before afterwards; None leaves them as they are."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def threads_for(config: HAEConfig, device: str | torch.device = "cpu") -> int | None:
    """One thread for a small model on a CPU, else None: torch's own choice. OMP_NUM_THREADS is the user's choice."""
    if torch.device(device).type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return None
    try:
        return 1 if macs_formulas(config)[0] < SMALL_MACS else None
    except HAELabError:  # a slot of the user's that nobody can count
        return None


@contextmanager
def stops_between_steps(active: bool = True) -> Iterator[threading.Event]:
    """Ctrl-C sets an event inside, and the step that runs comes to its end; a second one stops at once.

    Only where Ctrl-C would raise KeyboardInterrupt in this thread, and if `active`; else the event stays unset.
    """
    asked = threading.Event()
    own = threading.current_thread() is threading.main_thread()
    if not (active and own and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
