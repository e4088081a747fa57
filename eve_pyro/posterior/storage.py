"""Where the arrays of a tree are filled: in memory, in a NetCDF file, or in a Zarr store."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eve_pyro.posterior.filling import Arrays
from eve_pyro.posterior.layout import Layout, Variable

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

Fill = Callable[[Arrays], None]

SUFFIXES = (".nc", ".zarr")
CHUNK = 2**20  # bytes


def in_memory(layout: Layout, seed: int, fill: Fill) -> "DataTree":
    """Fill arrays in memory and return them as a tree."""
    from xarray import DataTree

    arrays = {key: np.zeros(variable.shape, variable.dtype) for key, variable in layout.variables.items()}
    fill(arrays)
    frames = _frames(layout, seed)
    for (group, name), array in arrays.items():
        frames[group][name] = (layout.variables[group, name].dims, array)
    return DataTree.from_dict(frames)


def check_target(out: str | Path) -> Path:
    """Return the path of a file to be written; ValueError where it exists, cannot be made, or is of another kind."""
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in neither .nc (NetCDF) nor .zarr")
    if path.exists():
        raise ValueError(f"{path} exists: remove it or choose another name")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    if path.suffix == ".zarr":
        try:
            import zarr  # noqa: F401
        except ImportError:
            raise ValueError(f"{path} needs zarr: pip install 'eve_pyro[zarr]', or write to a .nc file") from None
    return path


def on_disk(layout: Layout, seed: int, fill: Fill, path: Path) -> "DataTree":
    """Fill arrays in a file and return them as a tree that reads them when asked. The file has its name once whole."""
    import xarray

    part = path.with_name(f"{path.name}.part")
    _remove(part)
    engine, write = ("zarr", _write_zarr) if path.suffix == ".zarr" else ("h5netcdf", _write_netcdf)
    try:
        write(layout, xarray.DataTree.from_dict(_frames(layout, seed)), fill, part)
        part.rename(path)
    except BaseException:
        _remove(part)
        raise
    return xarray.open_datatree(path, engine=engine, chunks=None)


def _frames(layout: Layout, seed: int) -> dict[str, "Dataset"]:
    """Return the groups with their coordinates, before there is anything in them."""
    from arviz_base.base import make_attrs
    from xarray import Dataset

    library = {"inference_library": "eve_pyro", "inference_library_version": version("eve_pyro")}
    attrs = make_attrs(attrs=library | {"seed": seed})
    return {group: Dataset(coords=layout.coords_of(group), attrs=attrs) for group in layout.groups}


def _write_netcdf(layout: Layout, frames: "DataTree", fill: Fill, part: Path) -> None:
    import h5netcdf

    frames.to_netcdf(part, engine="h5netcdf")
    with h5netcdf.File(part, "a") as file:
        fill(
            {
                (group, name): file[group].create_variable(
                    name, variable.dims, variable.dtype, chunks=_chunks(variable, layout.chunk)
                )
                for (group, name), variable in layout.variables.items()
            }
        )


def _write_zarr(layout: Layout, frames: "DataTree", fill: Fill, part: Path) -> None:
    import zarr

    frames.to_zarr(part, zarr_format=2, consolidated=False)  # format 3 has no settled way to write text
    root: Any = zarr.open_group(part, mode="r+", zarr_format=2)
    arrays = {}
    for (group, name), variable in layout.variables.items():
        arrays[group, name] = root[group].create_array(
            name,
            shape=variable.shape,
            dtype=variable.dtype,
            chunks=_chunks(variable, layout.chunk),
            fill_value=np.nan,  # xarray reads this number as missing
            attributes={"_ARRAY_DIMENSIONS": list(variable.dims)},
        )
    fill(arrays)
    zarr.consolidate_metadata(part)


def _chunks(variable: Variable, chunk: tuple[int, int]) -> tuple[int, ...]:
    """Return chunks of one chain, the draws that are drawn at once, and windows up to about 1 MiB."""
    windows, draws = chunk
    shape = dict(zip(variable.dims, variable.shape, strict=True))
    shape |= {
        dim: min(size, shape[dim]) for dim, size in {"chain": 1, "window": 1, "draw": draws}.items() if dim in shape
    }
    if "window" in shape:
        room = max(1, CHUNK // variable._replace(shape=tuple(shape.values())).bytes)
        shape["window"] = next(size for size in range(min(room, windows), 0, -1) if windows % size == 0)
    return tuple(shape.values())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
