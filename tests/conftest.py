"""What several test files share: one thread a worker, and a look at the global random states."""

import random
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the workers of pytest-xdist fill the cores already
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell has put the tests into the background


@pytest.fixture
def random_states() -> Callable[[], tuple]:
    """A function that takes a picture of the global random states of random, numpy and torch, to compare with `==`."""

    def picture() -> tuple:
        _, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global state is the point)
        return random.getstate(), keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()

    return picture
