"""The command that writes a run's page: ``eve-pyro report``."""

from pathlib import Path
from typing import Annotated

import typer

from eve_pyro.cli_data import Data, read_panel, say


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run that is done.", show_default=False)],
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write. Default: report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML page about a trained run: scores, forecasts, census, calibration, and what its units are worth.

    A run folder does not keep its data, so DATA is named again; for a run of [bold]eve-pyro demo[/bold] it is the word
    demo. The page holds everything it shows: it opens without a network, and can be sent as it is.

    Example: eve-pyro report runs/etth1 ETTh1.csv
    """
    from eve_pyro.report import write_report

    page = out or run / "report.html"
    if out and not page.absolute().parent.is_dir():
        raise ValueError(f"cannot write {page}: there is no folder {page.absolute().parent}")
    write_report(run, read_panel(data), data, page, progress=True)
    size = page.stat().st_size / 2**20
    say(f"{page}: {size:.1f} MiB, open it in a browser")
