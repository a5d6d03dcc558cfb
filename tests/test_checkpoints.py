"""Weights on disk and between variants: what loads, what is refused, and that nothing is half written."""

import json
import os
import pickle
import re
import stat

import pytest
import torch
from parity_data import PARITY, parity_weights, sample_inputs, with_parity_weights
from safetensors import safe_open
from safetensors.torch import save_file

from hae_lab import VARIANTS, HAEConfig, HAELabError, build, config, load_checkpoint, save_checkpoint, transfer_weights
from hae_lab.files import atomic_path
from hae_lab.models import checkpoints

SUFFIXES = (".safetensors", ".pt")
TINY = config("hae", "tiny")

both_formats = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.fixture(scope="module")
def model():
    return with_parity_weights(build(TINY))


@pytest.fixture
def saved(model, tmp_path, suffix):
    return save_checkpoint(model, tmp_path / f"model{suffix}")


def refusal(source, model_config=TINY) -> str:
    with pytest.raises(HAELabError) as caught:
        load_checkpoint(source, model_config)
    return str(caught.value)


def listed(message: str, kind: str) -> list[str]:
    """The names that a message lists as missing, unexpected or misshaped; their count must be right too."""
    found = re.search(rf"^  {kind} \((\d+)\): (.*)$", message, re.MULTILINE)
    if found is None:
        return []
    names = re.split(r", (?=[a-z])", found[2])
    assert len(names) == int(found[1])
    return names


# what loads


@both_formats
def test_saved_weights_load_to_the_bit(model, saved):
    loaded = load_checkpoint(saved, TINY).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


@both_formats
def test_loaded_model_answers_to_the_bit(model, saved):
    inputs = sample_inputs(TINY)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(saved, TINY)(**inputs), model(**inputs))


@both_formats
def test_loaded_model_is_in_eval_mode_and_trainable(saved):
    loaded = load_checkpoint(saved, TINY)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in loaded.parameters())


@both_formats
def test_save_makes_the_folder_and_returns_the_path(model, tmp_path, suffix):
    path = tmp_path / "new" / "folder" / f"model{suffix}"
    assert save_checkpoint(model, str(path)) == path
    assert path.is_file()


def test_a_file_says_which_model_it_is_of_and_what_was_noted(model, tmp_path):
    path = save_checkpoint(model, tmp_path / "model.safetensors", {"steps": 3})
    loaded = load_checkpoint(path)
    assert loaded.config == TINY
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    with safe_open(path, "pt") as file:  # read by the format's own library
        assert json.loads(file.metadata()["hae_lab"]) == {"config": json.loads(TINY.to_json()), "steps": 3}
    assert checkpoints.checkpoint_notes(path)["steps"] == 3


def test_the_same_model_makes_the_same_bytes(model, tmp_path):
    notes = {"recipe": {"steps": 3, "precision": "no"}, "steps": 3}
    first, second = (save_checkpoint(model, tmp_path / f"{name}.safetensors", notes) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", ["pt", "foreign", "dict"])
def test_what_does_not_say_its_model_asks_for_a_config(model, tmp_path, kind):
    source = {
        "pt": lambda: save_checkpoint(model, tmp_path / "model.pt"),
        "foreign": lambda: foreign(model, tmp_path / "model.safetensors"),
        "dict": model.state_dict,
    }[kind]()
    with pytest.raises(HAELabError, match=r"does not say which model it is of: pass config="):
        load_checkpoint(source)


def foreign(model, path):
    """A file that another program wrote: no notes of ours."""
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("notes", ["[1]", "{", '{"config": {"image_size": 16}}', '{"config": {"wings": 2}}'])
def test_damaged_notes_are_refused(model, tmp_path, notes):
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path, {"hae_lab": notes})
    with pytest.raises(HAELabError):
        load_checkpoint(path)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_wrapped_state_dict_of_several_processes_loads_with_a_notice(model, tmp_path, key):
    names = {f"module.{name}": weight for name, weight in model.state_dict().items()}
    path = tmp_path / "others.pt"
    torch.save({key: names, "epoch": 3}, path)
    with pytest.warns(UserWarning, match=".") as notices:
        loaded = load_checkpoint(path, TINY).state_dict()
    assert [key in str(notices[0].message), "'module.'" in str(notices[1].message), len(notices)] == [True, True, 2]
    assert all(notice.filename == __file__ for notice in notices)  # the user's line
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


def test_what_no_model_without_classes_uses_may_be_missing():
    model = with_parity_weights(build(TINY.replace(num_classes=None)))
    state = {name: weight for name, weight in model.state_dict().items() if ".encoder_kv." not in name}
    assert len(state) < len(model.state_dict())
    with pytest.warns(UserWarning, match="no encoder_kv") as notices:
        loaded = load_checkpoint(state, model.config)
    assert [notice.filename for notice in notices] == [__file__]  # the user's line
    inputs = sample_inputs(model.config)
    assert torch.equal(loaded(**inputs), model.eval()(**inputs))
    # a model with classes needs them: its class tokens are keys
    whole = with_parity_weights(build(TINY)).state_dict()
    message = refusal({name: weight for name, weight in whole.items() if ".encoder_kv." not in name})
    assert set(listed(message, "missing")) == {name for name in whole if ".encoder_kv." in name}


def test_dict_of_published_names_loads():
    weights = parity_weights(PARITY["tiny_cond"]["variants"]["lite"]["state_dict"])
    body = HAEConfig(**PARITY["tiny_cond"]["config"]).replace(**VARIANTS["lite"])
    assert torch.equal(load_checkpoint(weights, body).state_dict()["out.2.weight"], weights["out.2.weight"])


def test_file_saved_by_torch_loads(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "published.pt")
    assert torch.equal(load_checkpoint(tmp_path / "published.pt", TINY).out[2].weight, model.out[2].weight)


def test_loaded_model_has_weights_of_its_own():
    source = build(TINY)
    loaded = load_checkpoint(source.state_dict(), TINY)
    with torch.no_grad():
        loaded.out[2].weight.fill_(1)
    assert (source.out[2].weight == 0).all()


# what is refused


@pytest.mark.parametrize("other", ["unet", "lite", "v2"])
def test_checkpoint_of_another_variant_is_refused_with_every_name(model, other):
    expected = build(other, "tiny").state_dict()
    given = model.state_dict()
    message = refusal(given, config(other, "tiny"))
    assert "does not fit this config (another variant?)" in message
    assert listed(message, "missing") == [name for name in expected if name not in given]
    assert listed(message, "unexpected") == [name for name in given if name not in expected]
    assert listed(message, "misshaped") == [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]


def test_missing_unexpected_and_misshaped_names_are_in_one_message(model):
    state = model.state_dict()
    state["mine"] = state.pop("out.2.bias")
    state["out.2.weight"] = torch.zeros(1, 2)
    message = refusal(state)
    assert listed(message, "missing") == ["out.2.bias"]
    assert listed(message, "unexpected") == ["mine"]
    assert "out.2.weight (1, 2) instead of (1, 16, 3, 3)" in message


@both_formats
def test_file_of_another_variant_is_refused_with_the_path(saved):
    assert str(saved) in refusal(saved, config("lite", "tiny"))


@both_formats
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused_with_the_path(saved, kept):
    saved.write_bytes(saved.read_bytes()[: int(kept * saved.stat().st_size)])
    message = refusal(saved)
    assert repr(str(saved)) in message
    assert "corrupted or truncated" in message


@both_formats
@pytest.mark.parametrize("where", ["start", "names"])
def test_corrupted_file_is_refused_with_the_path(saved, where):
    content = bytearray(saved.read_bytes())
    first = 0 if where == "start" else content.index(b"time_embed")
    content[first : first + 16] = b"\xff" * 16
    saved.write_bytes(content)
    message = refusal(saved)
    assert repr(str(saved)) in message
    assert "corrupted or truncated" in message


@both_formats
@pytest.mark.parametrize("content", [b"<html>404</html>", b"\0" * 100, b"\x80\x02]q\x00."])
def test_file_of_something_else_is_refused_with_the_path(tmp_path, suffix, content):
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    assert repr(str(path)) in refusal(path)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02X\x01"])
def test_broken_pickle_is_refused_with_the_path(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    assert repr(str(path)) in refusal(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": [1]}, 5])
def test_pickle_that_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    assert f"{str(path)!r} does not hold a state dict of tensors" in refusal(path)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoint_cannot_run_code(tmp_path):
    path, victim = tmp_path / "bomb.pt", tmp_path / "victim"
    torch.save({"out.2.bias": Bomb(victim)}, path)
    assert repr(str(path)) in refusal(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Bomb(victim)))
    assert victim.exists()  # the bomb itself works


@both_formats
def test_missing_file_is_refused_with_the_path(tmp_path, suffix):
    path = tmp_path / f"nowhere{suffix}"
    assert f"no such file: {str(path)!r}" in refusal(path)


def test_other_file_endings_are_refused_with_the_right_ones(model, tmp_path):
    with pytest.raises(HAELabError) as caught:
        save_checkpoint(model, tmp_path / "model.ckpt")
    for message in (str(caught.value), refusal(tmp_path / "model.ckpt")):
        assert ".safetensors or .pt" in message
        assert "model.ckpt" in message
    assert list(tmp_path.iterdir()) == []


# nothing is half written


@both_formats
def test_save_leaves_one_file(saved):
    assert list(saved.parent.iterdir()) == [saved]


@both_formats
def test_saved_file_has_the_usual_permissions(saved):
    ordinary = saved.parent / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@both_formats
def test_failed_save_keeps_the_old_file_and_leaves_no_other(model, saved, suffix, monkeypatch):
    def fails_half_way(state, path, *rest):
        path.write_bytes(b"half")
        raise OSError("disk full")

    before = saved.read_bytes()
    writer = "torch.save" if suffix == ".pt" else f"{checkpoints.__name__}.save_file"
    monkeypatch.setattr(writer, fails_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@both_formats
def test_refused_load_leaves_the_file_alone(saved):
    before = saved.read_bytes()
    refusal(saved, config("v2", "tiny"))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_folder_that_cannot_be_made_is_refused_with_the_path(model, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "model.pt"
    with pytest.raises(HAELabError) as caught:
        save_checkpoint(model, path)
    assert f"cannot write {str(path)!r}" in str(caught.value)


def test_path_that_is_a_folder_is_refused_with_the_path(model, tmp_path):
    path = tmp_path / "model.pt"
    path.mkdir()
    with pytest.raises(HAELabError) as caught:
        save_checkpoint(model, path)
    assert repr(str(path)) in str(caught.value)


def test_atomic_path_shows_the_file_only_when_whole(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".csv")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_leaves_nothing_after_an_interruption(tmp_path, error):
    def write_half():
        with atomic_path(tmp_path / "table.csv") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == []


# between variants


@pytest.mark.parametrize("target", ["unet", "lite", "v2", "hae"])
def test_transfer_copies_what_agrees_and_names_the_rest(model, target):
    given, receiver = model.state_dict(), build(target, "tiny", seed=1)
    before = {name: weight.clone() for name, weight in receiver.state_dict().items()}
    left = transfer_weights(model, receiver)
    agree = [name for name, weight in before.items() if name in given and given[name].shape == weight.shape]
    assert left == [name for name in before if name not in agree]
    after = receiver.state_dict()
    assert all(torch.equal(after[name], given[name]) for name in agree)
    assert all(torch.equal(after[name], before[name]) for name in left)


def test_transfer_from_lite_to_hae_leaves_the_two_changed_slots():
    left = transfer_weights(build("lite", "tiny"), build("hae", "tiny"))
    block = "output_blocks.1.2"
    projections = [f"{block}.transformer_branch.patch_projections.{i}.{kind}" for i in (0, 1) for kind in WEIGHT_BIAS]
    assert left == [*projections, f"{block}.fusion_conv.weight"]


def test_transfer_from_v2_to_lite_leaves_the_mlp():
    left = transfer_weights(build("v2", "tiny"), build("lite", "tiny"))
    assert left == [f"output_blocks.1.2.transformer_branch.mlp.{i}.{kind}" for i in (0, 3) for kind in WEIGHT_BIAS]


def test_transfer_within_a_variant_leaves_nothing(model):
    receiver = build(TINY, seed=1).eval()
    assert transfer_weights(model, receiver) == []
    inputs = sample_inputs(TINY)
    with torch.no_grad():
        assert torch.equal(receiver(**inputs), model(**inputs))


def test_transferred_weights_are_copies():
    source, receiver = build(TINY), build(TINY, seed=1)
    transfer_weights(source, receiver)
    with torch.no_grad():
        receiver.out[2].weight.fill_(1)
    assert (source.out[2].weight == 0).all()


WEIGHT_BIAS = ("weight", "bias")
