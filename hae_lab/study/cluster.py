"""Studies on a cluster: the workers of a Dask scheduler, checked before anything is sent to them."""

import re
from concurrent.futures import Future
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from hae_lab.checks import HAELabError, require
from hae_lab.study.store import Run, code_version
from hae_lab.study.task import Outcome, attempt, versions

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 8
INSTALL = "install the same package there, with pip, and start its workers again"


class DaskWorkers:
    """The workers of a Dask scheduler, a run each; Dask sends the run of a dead worker to another one by itself.

    Raises `HAELabError` for a scheduler that cannot be reached, one without workers, and workers whose libraries or
    code are not the driver's.
    """

    shared_disk = False

    def __init__(self, address: str | None) -> None:
        self._client = connect(address)
        try:
            self.table = preflight(self._client)
        except BaseException:
            self._client.close()
            raise
        self._executor = self._client.get_executor(pure=False)

    def __str__(self) -> str:
        return self.table.to_string(index=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()  # which gives up the runs that it asked for

    @property
    def slots(self) -> int:
        return max(1, len(self._client.nthreads()))

    def submit(self, run: Run, folder: str | None, parts: bytes) -> Future[Outcome]:
        return self._executor.submit(attempt, run.trial, run.experiment, run.key, folder, parts)

    def restart(self) -> None:
        """Nothing to do: the scheduler looks after its workers."""


def require_address(address: str | None) -> None:
    """Raise `HAELabError` unless this could be the address of a scheduler."""
    right = isinstance(address, str) and re.fullmatch(r"\w+://\S+", address) is not None
    example = 'for example address="tcp://host:8786"'
    require(right, f'backend="dask" needs the address of a scheduler, {example}; got {address!r}')


def connect(address: str | None) -> "Client":
    """A client of the scheduler. Raises `HAELabError` within 10 seconds if it does not answer."""
    require_address(address)
    require(find_spec("distributed") is not None, 'Dask is not installed: pip install "hae-lab[cluster]"')
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except Exception as error:  # what is not a scheduler can answer anything
        raise HAELabError(f"no Dask scheduler at {address!r} ({error}): start one with `dask scheduler`") from None


def ping() -> dict[str, str]:
    """What must be the same wherever a study runs: versions, and the code that decides a result."""
    return versions() | {"code": code_version()}


def preflight(client: "Client") -> pd.DataFrame:
    """A row a worker: its address, host, and what it answered to `ping`.

    Raises `HAELabError` that names the first worker without the package, or with another version of anything.
    """
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        assert client.scheduler is not None
        address = client.scheduler.address
        raise HAELabError(f"the scheduler at {address} has no workers: start some with `dask worker`") from None
    workers = {address: info["host"] for address, info in client.scheduler_info(n_workers=-1)["workers"].items()}
    for address, found in client.run(find_spec, "hae_lab", on_error="return").items():
        require(found is not None, f"worker {address} cannot import hae_lab: {INSTALL}")
    here = ping()
    answers = client.run(ping, on_error="return")
    for address, answer in answers.items():
        require(isinstance(answer, dict), f"worker {address} cannot run hae_lab ({answer!r}): {INSTALL}")
        differences = [f"{name} {answer[name]} (here {here[name]})" for name in here if _differs(name, answer, here)]
        require(not differences, f"worker {address} differs from the driver: {', '.join(differences)}; {INSTALL}")
    return pd.DataFrame([{"worker": address, "host": workers[address]} | answers[address] for address in workers])


def _differs(name: str, there: dict[str, Any], here: dict[str, Any]) -> bool:
    if name == "python":
        return there[name].split(".")[:2] != here[name].split(".")[:2]
    return there[name] != here[name]
