"""Workers of a study on a Ray cluster, for those who have one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from eve_pyro.autopilot.study import Place, join
from eve_pyro.data import Panel


@contextmanager
def ray_workers(panel: Panel, place: Place, count: int) -> Iterator[None]:
    """Have ``count`` workers on Ray join the study at ``place`` while the block runs, and wait for them at its end.

    The cluster is the one that RAY_ADDRESS names, else a local one that is started here. Each worker is a task of one
    CPU; one whose machine is lost is started again by Ray, and its training taken up by the study. The folder of
    ``place`` is one that all machines see. Raises ValueError without Ray, and for a cluster that cannot be reached.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise ValueError("workers on Ray need it: pip install 'eve_pyro[ray]'") from None
    mine = not ray.is_initialized()
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"cannot reach the Ray cluster: {str(error).splitlines()[0]}") from None
    try:
        everywhere = replace(place, folder=place.folder.absolute())
        held, task = ray.put(panel), ray.remote(num_cpus=1, max_retries=-1)(_work)
        running = [task.remote(held, everywhere) for _ in range(count)]
        yield
        ray.get(running)
    finally:
        if mine:
            ray.shutdown()


def _work(panel: Panel, place: Place) -> None:
    join(panel, place, lambda _: None)
