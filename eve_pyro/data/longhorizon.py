"""Where training ends and testing begins: by the field's long-horizon protocol, or by fractions."""

from dataclasses import dataclass
from typing import NamedTuple

ETT_HOURLY = (8640, 2880, 2880)
ETT_QUARTER_HOURLY = (34560, 11520, 11520)


class Bounds(NamedTuple):
    """Row numbers of one series: training ends at ``train``, validation at ``validation``, testing at ``test``."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Split:
    """Either exact ``rows`` of (training, validation, test), or the fractions of validation and test.

    Raises ValueError for fractions outside (0, 1) or rows below 1.
    """

    rows: tuple[int, int, int] | None = None
    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        if self.rows is not None and min(self.rows) < 1:
            raise ValueError(f"each part of a split needs at least one row, not {self.rows}")
        if min(self.validation, self.test) <= 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test are fractions above 0 that leave something to train on, not {self.validation} "
                f"and {self.test}"
            )

    def bounds(self, num_rows: int) -> Bounds:
        """Return the row numbers for a series of ``num_rows``; ValueError if it is too short for exact ``rows``."""
        if self.rows is None:
            train = int((1 - self.validation - self.test) * num_rows + 1e-9)
            return Bounds(train, num_rows - int(self.test * num_rows + 1e-9), num_rows)
        train, validation, test = self.rows
        if train + validation + test > num_rows:
            raise ValueError(f"the split {self.rows} needs {sum(self.rows)} rows, the series has {num_rows}")
        return Bounds(train, train + validation, train + validation + test)


def standard_split(name: str) -> Split:
    """Return the long-horizon split of the data set called ``name`` (a file's stem): 70 / 10 / 20 % unless it is ETT.

    The ETT sets have fixed rows, 12 / 4 / 4 months, the rest of the file unused. Source: Zhou et al., AAAI 2021.
    """
    if name.lower() in ("etth1", "etth2"):
        return Split(rows=ETT_HOURLY)
    if name.lower() in ("ettm1", "ettm2"):
        return Split(rows=ETT_QUARTER_HOURLY)
    return Split()
