"""Names of the package: an attribute called like a module is that module."""

import pkgutil
import sys
from importlib import import_module

import pytest

import hae_lab

MODULES = sorted(
    each.name for each in pkgutil.walk_packages(hae_lab.__path__, "hae_lab.") if "__main__" not in each.name
)


def test_modules_are_found():
    assert {"hae_lab.family", "hae_lab.profilers.macs", "hae_lab.models.slots"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_no_function_hides_a_module(module):
    import_module(module)
    parent, _, name = module.rpartition(".")
    assert getattr(import_module(parent), name) is sys.modules[module]
