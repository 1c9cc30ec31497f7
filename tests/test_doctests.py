"""The examples in docstrings."""

import doctest
import importlib

import pytest
from test_rooms import MODULES

EXAMPLES = [name for name, path in sorted(MODULES.items()) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
