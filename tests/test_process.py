"""What a run asks of its process: threads by the size of the model, and steps that Ctrl-C does not cut."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from test_training import WHOLE, quick, same, whole_run  # noqa: F401 (a fixture)

from hae_lab import config, load_checkpoint
from hae_lab.diffusion import training
from hae_lab.diffusion.process import stops_between_steps, threads, threads_for
from hae_lab.diffusion.sampling import sample
from hae_lab.diffusion.training import STATE, WEIGHTS, Recipe

TRAIN = "train v2 --preset tiny --data lesions --batch-size 4 --seed 3 --out".split()


# threads


@pytest.fixture
def no_choice(monkeypatch):
    """As on the computer of somebody who has set nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("no_choice")
def test_small_models_take_one_thread_of_a_cpu():
    assert [threads_for(config("hae", preset)) for preset in ("tiny", "lesson16", "lesson32")] == [1, 1, 1]
    assert [threads_for(config("unet", preset)) for preset in ("cifar32", "brats128")] == [None, None]
    assert threads_for(config("hae", "tiny"), "cuda") is None


def test_the_users_choice_of_threads_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_for(config("hae", "tiny")) is None


@pytest.mark.usefixtures("no_choice")
def test_a_run_and_its_samples_have_one_thread_and_put_the_others_back():
    before, seen = torch.get_num_threads(), []

    def look(model):
        seen.append(torch.get_num_threads())
        return {}

    try:
        torch.set_num_threads(2)
        trained = quick(recipe=Recipe(steps=2, batch_size=2), evaluate=look, evaluate_every=1)
        assert torch.get_num_threads() == 2
        trained.model.register_forward_hook(lambda *call: seen.append(torch.get_num_threads()))
        sample(trained.model, 2, steps=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 4


def test_threads_are_put_back_after_an_error():
    before, seen = torch.get_num_threads(), []

    def fail():
        with threads(before + 1):
            seen.append(torch.get_num_threads())
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


# Ctrl-C


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_stopped_run_loses_no_step_and_ends_with_the_same_bits(whole_run, monkeypatch, tmp_path, step):  # noqa: F811
    original, calls = training._draw, itertools.count(1)

    def stop(*arguments):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the step
            time.sleep(0.01)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_draw", stop)
        with pytest.raises(KeyboardInterrupt, match=re.escape(f"stopped after step {step} of 9; kept in '{tmp_path}'")):
            quick(tmp_path, save_every=100)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == step
    resumed = quick(tmp_path, save_every=100)
    assert same(resumed.model, whole_run.model)
    assert same(load_checkpoint(tmp_path / WEIGHTS, WHOLE), whole_run.model)
    assert resumed.curve == whole_run.curve


def test_without_a_folder_it_says_that_nothing_is_kept():
    def stop(model):
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9; nothing is kept without a folder"):
        quick(evaluate=stop)


def test_the_second_one_stops_at_once():
    seen = []

    def press_twice():
        with stops_between_steps() as asked:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                seen.append(asked.is_set())

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_and_other_threads_are_left_alone():
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stops_between_steps():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, mine)
    found = []

    def elsewhere():
        with stops_between_steps() as asked:
            found.append(signal.getsignal(signal.SIGINT) is mine and not asked.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.slow
def test_the_command_stops_with_130_and_the_same_command_continues(tmp_path):
    command = [sys.executable, "-m", "hae_lab", *TRAIN, str(tmp_path / "run"), "--steps"]
    with subprocess.Popen([*command, "2000"], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / STATE).exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    found = re.search(r"hae-lab: stopped after step ([\d,]+) of 2,000; kept in", errors)
    assert found, errors
    assert process.returncode == 130
    assert "Traceback" not in errors
    done = int(found[1].replace(",", ""))
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["step"] == done
    again = subprocess.run([*command, str(done + 2)], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["step"] == done + 2
