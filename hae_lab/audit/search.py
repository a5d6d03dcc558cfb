"""The search for a v3: candidates from optuna, timed and trained at equal time, halved on longer and longer runs.

Two generations: the first drawn at random from the candidates that fit, the second proposed by optuna's TPE from the
losses of the first. All that take less time than V2 are trained as long as HAE takes for the steps of a rung; the best
go on to the next rung, which starts anew with twice the time. Seeds and images are for choosing alone; the studies of
v3 confirm on others, and are in effect the third rung.
Sources: Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943 (successive halving); Bergstra et al. 2011 (TPE),
by optuna (Akiba et al. 2019, https://arxiv.org/abs/1907.10902).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hae_lab import tables
from hae_lab.audit.bench_v3 import training_case
from hae_lab.audit.search_space import BODY, SPACE, changes, configured, counted
from hae_lab.checks import HAELabError
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.datasets import Pair
from hae_lab.diffusion.patterns import twins
from hae_lab.family import HAEConfig
from hae_lab.presets import config
from hae_lab.profilers.timing import rounds
from hae_lab.study import Study

if TYPE_CHECKING:
    import optuna

SEED = 100  # of the runs; those of the studies begin at 0
DRAWN = 1  # the seed of the images; those of the studies have 0
HELD_OUT = 512
RUNGS = (100, 200)  # steps of HAE whose time each candidate gets
KEPT = (16, 3)  # candidates that run on each rung
DATA = (("twins",), ("twins", "phantoms"))  # of each rung
GENERATION = 8
TIMED_STEPS, TIMED_ROUNDS = 2, 7
REFERENCES = ("hae", "v2")


def twins_for_choosing(size: int) -> Pair:
    """Twins that no study sees."""
    pattern = twins(size)
    return pattern.draw(8192, seed=DRAWN), pattern.draw(HELD_OUT, seed=DRAWN, split="held-out")


def phantoms_for_choosing(size: int) -> Pair:
    """Heads that no study sees."""
    return phantoms(4000, size, seed=DRAWN), phantoms(HELD_OUT, size, seed=DRAWN, split="held-out")


# candidates


def drawn(study: "optuna.Study", known: set[str], count: int) -> list[tuple["optuna.trial.Trial", dict[str, Any]]]:
    """The next candidates of an optuna study that fit, have a Transformer, and are not known yet, with their trials."""
    from optuna.trial import TrialState

    found = []
    while len(found) < count:
        trial = study.ask()
        candidate = {name: trial.suggest_categorical(name, choices) for name, choices in SPACE.items()}
        costs = counted(candidate)
        if costs is None or not costs["fits"] or candidate["branches"] == "cnn" or same(candidate) in known:
            study.tell(trial, state=TrialState.FAIL)
            continue
        known.add(same(candidate))
        found.append((trial, candidate))
    return found


def same(candidate: Mapping[str, Any]) -> str:
    """What two candidates of one model share."""
    made = configured(candidate)
    return made.to_json() if made else ""


# time


def step_ms(configs: Mapping[str, HAEConfig]) -> pd.Series:
    """Median milliseconds of a training step of batch 32 of each config, side by side on this computer."""
    cases = {name: training_case(each, TIMED_STEPS) for name, each in configs.items()}
    return rounds(cases, repeats=TIMED_ROUNDS).median() / TIMED_STEPS


def timed(candidates: Mapping[str, Mapping[str, Any]], path: Path) -> pd.DataFrame:
    """A row a candidate, with its choices, ms_per_step, ms_hae and ms_v2; measured once, then read from `path`."""
    if path.exists():
        rows = tables.read(path)
        if list(rows["candidate"]) == list(candidates):
            return rows
        raise HAELabError(f"{str(path)!r} holds the times of other candidates: take another store")
    configs = {name: config("hae", BODY, **changes(each)) for name, each in candidates.items()}
    ms = step_ms({name: config(name, BODY) for name in REFERENCES} | configs)
    rows = pd.DataFrame([{"candidate": name} | dict(each) for name, each in candidates.items()])
    rows = rows.assign(ms_per_step=ms[list(candidates)].to_numpy(), ms_hae=ms["hae"], ms_v2=ms["v2"])
    tables.write(rows, path)
    return tables.read(path)


# rungs


def rung(level: int, rows: pd.DataFrame, store: Path) -> pd.DataFrame:
    """Train the candidates of some rows on a rung, and HAE; a row a candidate and data set.

    Columns: rung, candidate, data, steps, loss, hae_loss, percent_to_hae.
    """
    parts = [_on_data(level, data, rows, store) for data in DATA[level]]
    return pd.concat(parts, ignore_index=True)


def _on_data(level: int, data: str, rows: pd.DataFrame, store: Path) -> pd.DataFrame:
    steps = (RUNGS[level] * rows["ms_hae"] / rows["ms_per_step"]).round().astype(int)
    blocks: list[dict[str, Any]] = [{"label": "hae", "variant": ["hae"], "steps": [RUNGS[level]]}]
    for row, count in zip(rows.to_dict("records"), steps, strict=True):
        fields = changes({name: row[name] for name in SPACE})
        blocks.append({"label": row["candidate"], **{name: [each] for name, each in fields.items()}, "steps": [count]})
    fixed = {"data": f"{__name__}:{data}_for_choosing", "decay": "cosine", "evaluate_every": 10_000}
    study = Study(f"search-{data}-{RUNGS[level]}", blocks, seeds=[SEED], fixed=fixed)
    loss = study.run(store, workers=1, progress=False).set_index("cell")["loss"]
    own = loss[list(rows["candidate"])].to_numpy()
    return pd.DataFrame(
        {
            "rung": RUNGS[level],
            "candidate": rows["candidate"].to_numpy(),
            "data": data,
            "steps": steps.to_numpy(),
            "loss": own,
            "hae_loss": loss["hae"],
            "percent_to_hae": 100 * (own / loss["hae"] - 1),
        }
    )


def score(found: pd.DataFrame) -> pd.Series:
    """By candidate, the mean over the data sets of its loss to HAE's in percent; lower is better."""
    return found.groupby("candidate")["percent_to_hae"].mean()


def best(found: pd.DataFrame, count: int) -> list[str]:
    """The candidates of the lowest score."""
    return list(score(found).nsmallest(count, keep="first").index)


# the whole search


def search(store: Path, tell: Callable[[str], None] = lambda line: None) -> pd.DataFrame:
    """Run the search, or what the store lacks of it; a row a candidate, rung and data set, with its choices and times.

    Raises `HAELabError` without optuna.
    """
    study, candidates = _optuna_study(), pd.DataFrame()
    first: list[pd.DataFrame] = []
    known: set[str] = set()
    for generation in range(KEPT[0] // GENERATION):
        new, found = _generation(generation, study, known, store)
        candidates, first = pd.concat([candidates, new], ignore_index=True), [*first, found]
        tell(f"generation {generation}: {score(found).round(2).to_dict()}")
    levels = [pd.concat(first, ignore_index=True)]
    for level in range(1, len(RUNGS)):
        chosen = best(levels[-1], KEPT[level])
        levels.append(rung(level, candidates[candidates["candidate"].isin(chosen)], store))
        tell(f"rung {RUNGS[level]}: {score(levels[-1]).round(2).to_dict()}")
    return pd.concat(levels, ignore_index=True).merge(candidates, on="candidate", how="left")


def _generation(number: int, study: "optuna.Study", known: set[str], store: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates of a generation with their times, and their first rung; optuna is told their scores."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    if number:
        study.sampler = TPESampler(seed=number, n_startup_trials=0)
    asked = drawn(study, known, GENERATION)
    trials = {f"c{number * GENERATION + place:02}": each for place, each in enumerate(asked)}
    rows = timed({name: candidate for name, (_, candidate) in trials.items()}, store.parent / f"times_{number}.csv")
    faster = rows[rows["ms_per_step"] < rows["ms_v2"]]
    found = rung(0, faster, store)
    scores = score(found)
    for name, (trial, _) in trials.items():
        if name in scores:
            study.tell(trial, float(scores[name]))
        else:
            study.tell(trial, state=TrialState.FAIL)
    return rows, found


def _optuna_study() -> "optuna.Study":
    try:
        import optuna
    except ImportError:
        raise HAELabError("the search needs optuna: python -m pip install -e '.[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
