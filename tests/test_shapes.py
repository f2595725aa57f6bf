"""Annotations hold: they can be evaluated, and what breaks them is refused while the tests run."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from beartype.door import is_bearable
from jaxtyping import TypeCheckError

import optdepth
from checker import CONF
from optdepth.batch import hidden, select
from optdepth.exit_costs import Costs
from optdepth.features import residual_size
from optdepth.tasks import cross_entropy

MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(optdepth.__path__, "optdepth.")]


def members(module: ModuleType) -> Iterator[Any]:
    """The functions and classes that a module defines, and what is annotated in those classes."""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield thing
        if inspect.isclass(thing):
            yield thing
            for member in vars(thing).values():
                held = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
                if inspect.isfunction(held):
                    yield held


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_annotation_can_be_evaluated_and_checked(module: ModuleType) -> None:
    for member in members(module):
        for name, hint in typing.get_type_hints(member, include_extras=True).items():
            if typing.get_origin(hint) is ClassVar or hint is typing.NoReturn:  # nothing has them as its type
                continue
            try:
                is_bearable(None, hint, conf=CONF)
            except Exception as error:
                raise AssertionError(f"{member.__qualname__}: {name}") from error


def test_dimensions_of_one_name_are_equal() -> None:
    assert cross_entropy(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameter 'labels'"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(5, dtype=torch.int64))


def test_types_of_elements_are_checked() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'labels'"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(3))


def test_fields_of_a_dataclass_are_checked() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'look'"):
        Costs(np.ones(3), np.ones(2), np.ones(3))


def test_a_state_is_a_tree_of_tensors_to_its_leaves() -> None:
    tree = {"hidden": [torch.zeros(2, 3), (torch.zeros(2),)]}
    assert hidden(select(tree, torch.tensor([1]))).shape == (1, 3)
    with pytest.raises(TypeCheckError, match="parameter 'after'"):
        residual_size(tree, {"hidden": [torch.zeros(2, 3), ("no tensor",)]})
