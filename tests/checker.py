"""What checks shapes and types while the tests run: jaxtyping binds the names of dimensions, beartype knows the types.

beartype, for typeguard from version 3 on cannot read the functions that jaxtyping makes. It looks at one item of a list
or dict, so that a check takes as long whatever is checked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ForwardRef, Self

import torch
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.vale import Is
from jaxtyping import config
from torch import Tensor
from torch.utils._pytree import tree_leaves


def _of_tensors(tree: object) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in tree_leaves(tree))


_TREE = Annotated[object, Is[_of_tensors]]

CONF = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as it is for mypy
    # Self has no meaning in a function seen alone. A state holds states, which beartype does not follow by name: what a
    # state holds is followed here, to the leaves. The name is a string in the bound of a type variable.
    hint_overrides=FrozenDict({Self: Any, ForwardRef("State"): _TREE, "State": _TREE}),
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked from its first call on: beartype takes milliseconds for each that it reads.

    What is being compiled or exported is not checked: its tensors are symbols, and a check would be in the graph.
    """
    ready: Callable[..., Any] | None = None

    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal ready
        if torch.compiler.is_compiling():
            return function(*args, **keywords)
        if ready is None:
            ready = beartype(conf=CONF)(function)
        return ready(*args, **keywords)

    return call


@contextmanager
def unchecked() -> Iterator[None]:
    """For calls that break an annotation on purpose, to meet the error of the code itself, as users do."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
