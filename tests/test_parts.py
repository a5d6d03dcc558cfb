"""Parts of users: found by name, named by their source, carried to other processes."""

import functools
import linecache
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import study_parts
import torch

from hae_lab import HAELabError, config, parts
from hae_lab.diffusion.datasets import DATA, load_data
from hae_lab.diffusion.metrics import METRICS, Metric
from hae_lab.parts import SLOT_PARTS, adopted, beside, load, ship
from hae_lab.rules import RULES, mask_for
from hae_lab.sources import source_sha256


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(parts, "_FILES", {})


def cell(text: str, name: str = "<cell>") -> dict:
    """Run code as a notebook does: in __main__, its source in the line cache, its classes without a file."""
    text = textwrap.dedent(text)
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), scope)
    return scope


def module(folder: Path, name: str, text: str):
    """A user's module, imported anew."""
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    linecache.checkcache()
    with beside(folder):
        return parts.load_module(f"{name}.py")


# by name


def test_files_are_found_beside_the_study_then_where_they_were_then_here(tmp_path, monkeypatch):
    for name in ("study", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def where():\n    return {name!r}\n")
    monkeypatch.chdir(tmp_path / "here")
    with beside(tmp_path / "study"):
        assert load("mine.py:where")() == "study"
    assert load("mine.py:where")() == "study"  # outside of the block it stays what it was
    monkeypatch.setattr(parts, "_FILES", {})
    assert load("mine.py:where")() == "here"


def test_a_file_may_name_its_own_parts_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_RUNNING", {})
    text = """
        from hae_lab.parts import load

        RUNS = []

        def part():
            return 7

        RUNS.append(load("own.py:part"))
        """
    own = module(tmp_path, "own", text)
    assert [own.part] == own.RUNS
    assert load("own.py:part") is own.part
    assert parts._RUNNING == {}
    with pytest.raises(HAELabError, match=r"'early\.py' has no 'later'"):
        module(tmp_path, "early", "from hae_lab.parts import load\nload('early.py:later')\nlater = 1\n")
    assert parts._RUNNING == {}


def test_one_name_from_two_folders_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("x = 1\n")
    with beside(tmp_path / "a"):
        load("mine.py:x")
    with beside(tmp_path / "b"), pytest.raises(HAELabError, match=r"'mine\.py' is '.*/a/mine\.py' in this process"):
        load("mine.py:x")


def test_an_edited_file_is_read_again_and_one_that_is_gone_is_remembered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f():\n    return 1\n")
    before = load("mine.py:f")
    assert load("mine.py:f") is before
    first = source_sha256(before)
    (tmp_path / "mine.py").write_text("def f():\n    return 2\n")
    assert load("mine.py:f")() == 2
    assert source_sha256(load("mine.py:f")) != first
    (tmp_path / "mine.py").unlink()
    assert load("mine.py:f")() == 2


def test_a_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "helper_of_mine", raising=False)
    (tmp_path / "helper_of_mine.py").write_text("K = 4\n")
    found = module(tmp_path, "mine", "import helper_of_mine\ndef f():\n    return helper_of_mine.K\n")
    assert found.f() == 4
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rules", "'module:name' or 'file.py:name' is needed"),
        ("no_such_module:f", "mask rule 'no_such_module:f' cannot be imported here: ModuleNotFoundError"),
        ("none.py:f", "no file 'none.py' in "),
        ("bad.py:f", "mask rule 'bad.py:f' cannot be imported here: SyntaxError"),
        ("good.py:f", "mask rule 'good.py:f' cannot be imported here: 'good.py' has no 'f'"),
    ],
)
def test_what_cannot_be_loaded_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    with pytest.raises(HAELabError) as error:
        load(name, "mask rule")
    assert message in str(error.value)
    assert not [each for each in sys.modules if each.startswith("_hae_lab_part_bad")]


# by source


BASE = """
    import functools, helper_a
    import numpy as np
    import torch
    from dataclasses import dataclass
    K = 3
    TABLE = {"a": [1, 2], "b": (3.0, None)}
    ARRAY = np.arange(4)
    TENSOR = torch.arange(4, dtype=torch.bfloat16)
    LAYER = torch.nn.Linear(1, 1, bias=False)
    LAYER.weight.data[:] = 2
    OTHER = 1
    LOOP = []
    LOOP.append(LOOP)
    def helper(x):
        return x + K
    def unused(x):
        return OTHER
    def scaled(factor):
        def decorate(f):
            @functools.wraps(f)
            def wrapper(x):
                return factor * f(x)
            return wrapper
        return decorate
    def make(k):
        def made(x, extra=k):
            return x + k
        return made
    class Base:
        size = K
    class Part(Base):
        def f(self):
            return helper(1)
        def __call__(self):
            return self.f()
    @dataclass(frozen=True)
    class Rule:
        width: int
        def __call__(self, x):
            return x + self.width
    def part(x):
        \"\"\"Words.\"\"\"
        return helper(x), TABLE, ARRAY, TENSOR, LAYER, LOOP, helper_a.f(x)  # why
    @scaled(2)
    def decorated(x):
        return x
    plain = lambda x: x + 1; other = lambda x: x + 2
    looped = scaled(5)(make(2))
    bound = Rule(4)
    half = functools.partial(helper, x=1)
    def inside(x):
        import helper_b
        return helper_b.g
"""
HELPER_A = "import helper_b\ndef f(x):\n    return helper_b.g(x)\n"
HELPER_B = "import helper_a\ndef g(x):\n    return x\n"  # the two import each other


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """A function that gives the hash of every part of BASE after edits (old, new) of it and its helpers."""
    monkeypatch.syspath_prepend(tmp_path)
    names = "part Part Rule decorated plain other looped bound half inside".split()

    def take(*edits: tuple[str, str]) -> dict[str, str]:
        texts = {"mine": BASE, "helper_a": HELPER_A, "helper_b": HELPER_B}
        for old, new in edits:
            assert any(old in text for text in texts.values())
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name in ("helper_a", "helper_b"):
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").write_text(texts[name])
        linecache.checkcache()
        found = module(tmp_path, "mine", texts["mine"])
        return {name: source_sha256(getattr(found, name)) for name in names}

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # an edit within a second keeps its old bytecode
    yield take
    sys.dont_write_bytecode = before
    for name in ("helper_a", "helper_b"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("edit", "renamed"),
    [
        (("OTHER = 1", "OTHER = 2"), set()),
        (("# why", "# because"), set()),
        (("Words.", "Other words."), set()),
        (("K = 3", "K = 4"), {"part", "Part", "half"}),
        (("(3.0, None)", "(4.0, None)"), {"part"}),
        (("np.arange(4)", "np.arange(5)"), {"part"}),
        (("torch.arange(4,", "torch.arange(5,"), {"part"}),
        (("data[:] = 2", "data[:] = 3"), {"part"}),
        (("LOOP.append(LOOP)", "LOOP.append(1)"), {"part"}),
        (("return x + K", "return x - K"), {"part", "Part", "half"}),
        (("size = K", "size = K + 1"), {"Part"}),
        (("@scaled(2)", "@scaled(3)"), {"decorated"}),
        (("factor * f(x)", "factor + f(x)"), {"decorated", "looped"}),
        (("x + 2", "x + 3"), {"other"}),
        (("scaled(5)", "scaled(6)"), {"looped"}),
        (("make(2)", "make(3)"), {"looped"}),
        (("Rule(4)", "Rule(5)"), {"bound"}),
        (("self.width", "self.width * 2"), {"bound", "Rule"}),
        (("helper, x=1", "helper, x=2"), {"half"}),
        (("return helper_b.g(x)", "return 2 * helper_b.g(x)"), {"part", "inside"}),
        (("return x\n", "return -x\n"), {"part", "inside", "decorated"}),
    ],
)
def test_a_hash_follows_what_a_part_uses_and_nothing_else(edit, renamed, hashes):
    before, after = hashes(), hashes(edit)
    assert {name for name in before if before[name] != after[name]} == renamed


def test_hashes_are_the_same_again(hashes):
    assert hashes() == hashes()
    assert len(set(hashes().values())) == 10


def test_functions_and_classes_of_a_notebook_have_a_source(monkeypatch):
    text = """
        K = 2
        class Part:
            def f(self):
                return K
        def rule(grid, sparsity, seed):
            return K
    """
    found = []
    edits = (text, text, text.replace("K = 2", "K = 3"), text.replace("return K", "return 5"))
    for number, written in enumerate(edits):
        scope = cell(written, f"<cell {number}>")
        monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))
        vars(sys.modules["__main__"]).update(scope)
        found.append((source_sha256(scope["Part"]), source_sha256(scope["rule"])))
    assert found[0] == found[1]
    for place in (0, 1):
        assert len({pair[place] for pair in found}) == 3


def test_an_object_with_hidden_state_is_no_part():
    class Rule:
        def __call__(self, grid, sparsity, seed):
            return None

    with pytest.raises(HAELabError, match="is no part: write it as a function or class"):
        source_sha256(Rule())


def test_a_part_without_source_is_refused():
    scope = {"__name__": "nowhere"}
    exec("def rule(grid, sparsity, seed):\n    return 1\n", scope)
    with pytest.raises(HAELabError, match="has no source to name its runs by"):
        source_sha256(scope["rule"])


def test_a_metric_is_named_by_what_measures_it():
    one, two = (Metric("sharpness", measure=study_parts.sharpness), Metric("sharpness", measure=study_parts.drawn))
    assert source_sha256(one) != source_sha256(two)
    assert source_sha256(one) == source_sha256(Metric("sharpness", measure=study_parts.sharpness))


# to other processes


def shipped(**named) -> bytes:
    return ship({kind.replace("_", " "): {name: part} for kind, (name, part) in named.items()})


def test_what_is_lent_is_known_inside_and_forgotten_outside():
    sent = shipped(mask_rule=("mine", study_parts.diagonal), data_set=("study_parts:images", study_parts.images))
    sys.modules.pop("study_parts")  # as in a folder where the file is not
    try:
        with adopted(sent):
            assert "study_parts" not in sys.modules
            rule = RULES.find("mine")
            config("hae", "tiny", mask_rule="mine")
            grid = parts.load("hae_lab.masks:TokenGrid")(4, 4)
            assert mask_for("mine", grid).stop[0, 8] == 11
            pair = load_data("study_parts:images", 16)
        with adopted(sent):
            assert RULES.find("mine") is rule
            assert load_data("study_parts:images", 16)[0] is pair[0]  # drawn once for all runs of a study
    finally:
        sys.modules["study_parts"] = study_parts
    assert (RULES.lent, DATA.lent, "mine" in RULES) == ({}, {}, False)
    with pytest.raises(HAELabError, match="unknown mask rule 'mine'"):
        RULES.find("mine")


def test_a_part_of_the_package_under_its_own_name_is_not_sent_and_under_another_it_is(monkeypatch):
    monkeypatch.setitem(RULES, "alias", RULES["dense"])
    monkeypatch.setitem(RULES, "window2d", study_parts.diagonal)
    rules = {name: RULES[name] for name in ("dense", "alias", "window2d")}
    assert [RULES.is_own(name) for name in rules] == [True, False, False]
    with adopted(ship({"mask rule": rules})):
        assert RULES.lent.keys() == {"alias", "window2d"}
        assert RULES.find("alias") is RULES["dense"]
    assert SLOT_PARTS["fusion"].is_own("mean")
    assert parts.REGISTRIES["data set"].is_own("hae_lab.diffusion.datasets:phantom_pair")
    assert not parts.REGISTRIES["data set"].is_own("study_parts:images")


def test_lent_parts_are_given_back_after_an_error():
    sent = shipped(metric=("m", Metric("m", measure=study_parts.drawn)))
    with pytest.raises(HAELabError, match="unknown metric 'n'"), adopted(sent):
        METRICS.find(METRICS.find("m").title.replace("m", "n"))
    assert METRICS.lent == {}


def test_what_cannot_travel_is_named(tmp_path):
    with (tmp_path / "file").open("w") as file:

        def rule(grid, sparsity, seed):
            return file

        with pytest.raises(HAELabError, match="mine cannot be sent to other processes: PicklingError"):
            shipped(mask_rule=("mine", rule))


@dataclass(frozen=True)
class Stripes:
    """A rule with a number of its own."""

    width: int

    def __call__(self, grid, sparsity, seed):
        return study_parts.diagonal(grid, sparsity, seed), self.width


def test_partials_and_dataclasses_travel():
    sent = ship({"mask rule": {"p": functools.partial(study_parts.diagonal, seed=1), "s": Stripes(3)}})
    with adopted(sent):
        grid = parts.load("hae_lab.masks:TokenGrid")(4, 4)
        mask, width = RULES.find("s")(grid, 0.9, 0)
        assert width == 3
        assert np.array_equal(mask.stop, RULES.find("p")(grid, 0.9).stop)
    assert torch.equal(study_parts.GATE, torch.tensor([0.25]))
