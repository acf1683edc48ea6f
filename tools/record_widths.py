"""Put measured accuracies into the table that the package ships, and that table into docs/accuracy.md.

    hwsim table widths embedded --images 32 --batch 32
    python tools/record_widths.py --table build/tables/widths-embedded.csv
    python tools/record_widths.py --trained embedded 6 build/training/embedded-6 --note "1 epoch"
    python tools/record_widths.py                       # only the page

A row that is there already is replaced.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import click
import pandas as pd

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.networks.embedded import assets_folder
from hwsim.widths import ASSET, KEY, arranged, markdown, measured_widths, read_widths

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- widths: begin -->\n", "<!-- widths: end -->\n"


def rows_of_table(path: Path, device: str) -> list[dict[str, object]]:
    """Rows of a CSV of ``hwsim table widths``."""
    network = path.stem.removeprefix("widths-")
    found = []
    for row in pd.read_csv(path).to_dict("records"):
        system, bits = row["label"].rsplit(" ", 1)
        found.append(
            {
                "network": network,
                "system": system,
                "bits": bits,
                "width": int(bits.split("/")[0]),
                "images": row["images"],
                "float": round(row["float_top1"], 2),
                "fake": round(row["fake_quant_top1"], 2),
                "integer": round(row["integer_top1"], 2),
                "note": "" if row["note"] != row["note"] else row["note"],
                "on": device,
                "measured": row["measured"],
            }
        )
    return found


def row_of_training(network: str, width: int, folder: Path, note: str, device: str) -> dict[str, object]:
    """The row of a folder of ``hwsim train``."""
    result = json.loads((folder / "result.json").read_text())
    return {
        "network": network,
        "system": "Q-ViT",
        "bits": f"{width}/{width}/{width}",
        "width": width,
        "images": result["images"],
        "float": round(result["float_top1"], 2),
        "fake": round(result["fake_quant_top1"], 2),
        "integer": round(result["integer_top1"], 2),
        "note": note,
        "on": device,
        "measured": date.today().isoformat(),
    }


@click.command()
@click.option("--table", "tables", multiple=True, type=click.Path(path_type=Path), help="CSV of hwsim table widths.")
@click.option(
    "--trained", nargs=3, multiple=True, type=(str, int, click.Path(path_type=Path)), help="NETWORK WIDTH FOLDER."
)
@click.option("--note", default="", help="Of the trained rows.")
@click.option("--on", "device", default="CPU", show_default=True, help="Where they were calibrated or trained.")
def record(tables: tuple[Path, ...], trained: tuple[tuple[str, int, Path], ...], note: str, device: str) -> None:
    """Record measured accuracies."""
    found = [row for path in tables for row in rows_of_table(path, device)]
    found += [row_of_training(*which, note, device) for which in trained]
    data = read_widths()
    if found:
        data = pd.concat([data, pd.DataFrame(found)]).drop_duplicates(list(KEY), keep="last")
        data = arranged(data)
        write_atomically(assets_folder() / ASSET, data.to_csv(index=False))
    text = PAGE.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise HwsimError(f"{PAGE}: needs one line {BEGIN.strip()} and one {END.strip()}")
    head, rest = text.split(BEGIN)
    write_atomically(PAGE, head + BEGIN + markdown(measured_widths()) + END + rest.split(END)[1])
    click.echo(f"{len(found)} rows recorded, {len(data)} in all")


if __name__ == "__main__":
    try:
        record(standalone_mode=False)
    except (HwsimError, click.ClickException) as error:
        click.echo(f"record_widths: {error}", err=True)
        sys.exit(2)
