"""Moving the runs of an older version to today's names, where they are the same computation.

A run of version 0.1.0 was named by trial, experiment, data and code. Today its experiment has further fields, which
have their defaults, and the sources of its parts are named apart from the code. `EQUIVALENT` says which older code
computed the same bits as today's; whoever changes what decides a result leaves it as it is, and old runs train again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from hae_lab.checks import HAELabError, require
from hae_lab.parts import REGISTRIES
from hae_lab.sources import source_sha256
from hae_lab.study.store import Store, canonical_json, code_version, run_key
from hae_lab.study.task import TRIAL, TRIALS

# the parts of version 0.1.0, by registry
FIRST_PARTS = {
    "mask rule": (
        "document", "document_shared", "always_regional", "spatial_reduction", "window2d", "dense",
    ),
    "regions": ("linear", "pooled"),
    "mlp": ("gelu",),
    "fusion": ("concat", "mean"),
    "data set": ("phantoms", "lesions", "digits"),
}  # fmt: skip

# older code version -> the `computation()` that is the same to the bit; proved by `hae-lab study FILE --verify N`
EQUIVALENT = {"3edd275abc97f38f": "96df042355c5e508"}


@lru_cache
def computation() -> str:
    """Hash of all that decides the results of version 0.1.0's runs today: the code, and the sources of its parts."""
    from hae_lab.diffusion.datasets import DATA  # torch loads here; only then are all registries there

    registries = {**REGISTRIES, DATA.kind: DATA}
    parts = {
        f"{kind} {name}": source_sha256(registries[kind].find(name))
        for kind, names in FIRST_PARTS.items()
        for name in names
    }
    return sha256(json.dumps({"code": code_version(), "parts": parts}, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Migration:
    """What became of the runs of a store: how many keep their name, how many were moved, and who must train anew."""

    store: Path
    current: int
    moved: int
    begun: int  # runs that were not finished, whose checkpoints were moved
    left: tuple[str, ...]  # a line a run that stays under its old name, with the reason

    def __str__(self) -> str:
        lines = [f"{self.store}: {self.current} runs of this version, {self.moved} moved to it, {len(self.left)} left"]
        lines += [f"  {self.begun} that were begun continue from their checkpoints"] if self.begun else []
        return "\n".join([*lines, *(f"  {line}" for line in self.left)])


def migrate(store: str | Path) -> Migration:
    """Name the runs of an older version as today's, where the computation is the same; leave the others untouched.

    Raises `HAELabError` for a store that cannot be written or that a driver holds.
    """
    current, moved, left = 0, 0, []
    with Store(store) as opened, opened.held():
        for key, row in opened.select().items():
            if row["code"] == code_version():
                current += 1
                continue
            try:
                renamed = renamed_row(row)
            except HAELabError as reason:
                left.append(f"{key[:12]} ({row['trial']}, seed {row['seed']}): must train anew: {reason}")
                continue
            opened.rename(key, renamed)
            moved += 1
        begun = _move_checkpoints(opened)
    return Migration(Path(store), current, moved, begun, tuple(left))


def _move_checkpoints(store: Store) -> int:
    """Move the checkpoints of unfinished runs of an equal computation; how many there were."""
    moved = 0
    for path in store.folder("*").parent.glob("*/experiment.json"):
        text = path.read_text(encoding="utf-8").strip()
        for code in (code for code, equal in EQUIVALENT.items() if equal == computation()):
            row = {"trial": TRIAL, "experiment": text, "data": json.loads(text)["data"], "code": code}
            if sha256(json.dumps(row, sort_keys=True).encode()).hexdigest() == path.parent.name:
                place = store.folder(renamed_row(row)["key"])
                if not place.exists():
                    path.parent.rename(place)
                    moved += 1
    return moved


def renamed_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an older version under today's key. Raises `HAELabError` if its computation changed."""
    from hae_lab.diffusion.experiment import Experiment, parts_of

    known = EQUIVALENT.get(row["code"]) == computation()
    require(known, f"code {row['code']} is not known to compute what today's does")
    # fields that it does not have get their defaults, which is what its code did
    experiment = Experiment.from_json(row["experiment"])
    parts = parts_of(experiment)
    foreign = [name for kind, named in parts.items() for name in named if name not in FIRST_PARTS.get(kind, ())]
    foreign += [] if TRIALS.is_own(row["trial"]) else [row["trial"]]
    require(not foreign, f"nobody knows the source of {', '.join(foreign)} then")
    text = canonical_json(experiment.to_json())
    sources = {f"{kind} {name}": source_sha256(part) for kind, named in parts.items() for name, part in named.items()}
    key = run_key(row["trial"], text, row["data"], code_version(), sources)
    changes = {"key": key, "experiment": text, "code": code_version(), "parts": json.dumps(sources, sort_keys=True)}
    return dict(row) | changes
