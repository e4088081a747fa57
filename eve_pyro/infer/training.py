"""How to train, as options: light to import, shown by the command line as they stand here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

Options = TypeVar("Options")


def option(default: Any, help: str, name: str | None = None) -> Any:
    """Return a dataclass field that the command line shows as an option, called ``name`` if given, with this help."""
    return field(default=default, metadata={"help": help, "name": name})


def checked(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Return the options ``kind`` of these ``values``, as its annotations have them.

    Raises ValueError with the option's name, what it may be, and what it was.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"option {where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


@dataclass(frozen=True)
class Training:
    """AdamW under a one-cycle schedule, the best epoch by validation score kept."""

    epochs: Annotated[int, Ge(1)] = option(4, "Passes over the training windows.")
    batch_size: Annotated[int, Ge(1)] = option(256, "Windows a step.")
    learning_rate: Annotated[float, Gt(0), Le(1)] = option(1e-3, "Peak of the one-cycle schedule.")
    weight_decay: Annotated[float, Ge(0), Le(1)] = option(0.0, "Weight decay of AdamW.")
    clip: Annotated[float, Gt(0), Le(1e6)] = option(1.0, "Largest norm of a gradient.")
    patience: Annotated[int, Ge(1)] = option(5, "Epochs without a better validation score before stopping.")
    monitor: Literal["crps", "loss", "last"] = option(
        "crps", "Which epoch is kept: best val_crps (of classes, val_log_score), best val_loss, or last."
    )
    validation_windows: Annotated[int, Ge(1)] = option(2048, "Validation windows scored each epoch, evenly spaced.")
    seed: Annotated[int, Ge(0), Lt(2**63)] = option(0, "Seed of initial weights, shuffling and draws.")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("cpu", "Where to train.")
    progress: bool = option(True, "Show a progress bar.")

    def steps(self, num_windows: int) -> int:
        """Return how many steps a training on ``num_windows`` takes, if nothing stops it early."""
        return self.epochs * max(1, num_windows // self.batch_size)
