"""What the user sets: the supernet of a search space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from glora_search.errors import invalid
from glora_search.space.bound import BoundSpace
from glora_search.space.schema import SearchSpace
from glora_search.supernet.layer import SHARING
from glora_search.tuners.registry import GLoraSearchType


@dataclass
class SupernetConfig(PeftConfig):
    """Configuration of a [`SupernetModel`].

    Args:
        space (`Union[SearchSpace, BoundSpace, str]`): the space whose choices the supernet holds, or its file's name;
            it is bound to the model when the supernet is made, and saved as plain data.
        sharing (`str`): how the kinds of a path share weights. ``separate``: each has tensors of its own. ``nested``,
            as in the paper's code: a vector is the first column of the low-rank factor, a constant its first entry.
            The ranks of a low-rank path are nested in both.
        modules_to_save (`List[str]`, *optional*): as in peft; the head is among them where the task has one. The
            layers inside of these modules are trained as they are: the supernet's space leaves them out.

    Raises:
        UserError: the space is missing or of another type; ``sharing`` is unknown.
    """

    space: Any = field(default=None, metadata={"help": "The search space, or the name of its file."})
    sharing: str = field(default=SHARING[0], metadata={"help": "How kinds share weights: separate or nested."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Set by the space when it is bound."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules besides the supernet's layers to train and save."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = GLoraSearchType.GLORA_SUPERNET
        if self.sharing not in SHARING:
            raise invalid("sharing", self.sharing, SHARING)
        if isinstance(self.space, str):
            self.space = SearchSpace.load(self.space)
        if isinstance(self.space, BoundSpace):
            self.set_bound(self.space)
        elif not isinstance(self.space, (SearchSpace, dict)):
            raise invalid("space", self.space, "a SearchSpace, a BoundSpace, or the name of a space's file")

    def set_bound(self, space: BoundSpace) -> None:
        """Keep a bound space, as plain data so that it can be saved, and target its layers."""
        self.space = space.to_dict()
        self.target_modules = space.targets()

    @property
    def bound(self) -> BoundSpace:
        """The bound space."""
        return BoundSpace.from_dict(self.space)
