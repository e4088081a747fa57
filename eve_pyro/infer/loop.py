"""Lightning's parts, in one place: importing them adds filters to everybody's warnings and names to the environment."""

import os
import warnings

_before = set(os.environ)
with warnings.catch_warnings():
    import lightning as L
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger
for _name in set(os.environ) - _before:
    del os.environ[_name]

__all__ = ["Callback", "EarlyStopping", "L", "ModelCheckpoint", "RichProgressBar", "TensorBoardLogger"]
