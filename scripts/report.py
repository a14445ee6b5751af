#!/usr/bin/env python3
"""One page of what the network learned: maps to explore, samples with their pictures, and every table of a results file.

    report.py FILE.nc [FILE2.nc] [-o FILE.html] [--model FILE] [--points N] [--pixels N]

The page is one HTML file that needs no server and no network, and asks for none: pictures, numbers and the library that
draws the maps (Plotly, MIT licence) are inside. Hovering a point shows its sample; a selection shows in all maps. Of two
files the samples they share are shown side by side: two models, or two epochs; the second one's maps are turned to lie
on the first one's (Procrustes). Prints the path of the page. 10,000 MNIST samples are some 10 MB.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from string import Template

try:
    import numpy as np
    import xarray as xr
    from plotly.offline import get_plotlyjs

    import cnnscope
    import report_data
    import report_sections
except ImportError as error:
    sys.exit(f"report.py: {error}: run scripts/setup.sh once, then .venv/bin/python scripts/report.py")

HERE = Path(__file__).resolve().parent
PROGRAMS = (HERE.parent / "build/cnnscope", HERE.parents[2] / "bin/cnnscope")  # of a clone, of an installation


def main() -> None:
    arguments = parse_arguments()
    try:
        print(write(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"report.py: {error}")


def parse_arguments() -> argparse.Namespace:
    def count(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="+", metavar="FILE.nc", help="one or two results files of cnnscope")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: FILE.html beside the first file")
    parser.add_argument("--model", type=Path, metavar="FILE", help="the network, to list its layers too (by `cnnscope inspect`)")
    parser.add_argument("--points", type=count, default=report_data.MAX_POINTS, metavar="N", help="of a map at most; default: %(default)s")
    parser.add_argument("--pixels", type=count, default=report_data.MAX_PIXELS, metavar="N",
                        help="of all pictures of a kind at most; default: %(default)s, 10,000 of 28 x 28")
    arguments = parser.parse_args()
    if len(arguments.file) > 2:
        parser.error(f"{len(arguments.file)} files, expected one or two")
    return arguments


def write(arguments: argparse.Namespace) -> Path:
    runs = [cnnscope.open_result(path) for path in arguments.file]
    output = arguments.output or arguments.file[0].with_suffix(".html")
    model = layers_of(arguments.model, runs[0], arguments.file[0]) if arguments.model else ""
    report = report_data.gather(names(arguments.file), runs, arguments.points, arguments.pixels)
    partial = output.with_name(output.name + ".partial")
    try:
        partial.write_text(page(report, runs, model), encoding="utf-8")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return output


def names(paths: list[Path]) -> list[str]:
    """What the files are called in the page: by name, or by path where that is the same."""
    short = [path.stem for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def layers_of(model: Path, ds: xr.Dataset, file: Path) -> str:
    """The layers of the network that a file is of, as `cnnscope inspect` lists them."""
    program = next((p for p in PROGRAMS if p.exists()), None) or shutil.which("cnnscope")
    if not program:
        raise ValueError(f"{PROGRAMS[0]}: no such program, expected it for --model: build it by scripts/setup.sh")
    done = subprocess.run([program, "inspect", "--model", model], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().removeprefix("cnnscope: "))
    if ds.attrs.get("model_sha256", "") not in done.stdout:
        raise ValueError(f"{model}: is not the network of {file}, expected the one of {ds.attrs.get('run_model')}")
    return done.stdout.rstrip().rpartition("\n\n")[2]


def page(report: report_data.Report, runs: list[xr.Dataset], model: str = "") -> str:
    body = report_sections.sections(report, runs, model)
    titles = [part.split("</h2>")[0] for part in body.split("<h2>")[1:]]
    links = "".join(f'<a href="#{report_sections.anchor(title)}">{title}</a>' for title in ["Maps", *titles])
    library = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9)).decode()
    data = json.dumps(report_data.payload(report), ensure_ascii=False).replace("<", "\\u003c")  # no tag ends early

    def part(name: str) -> str:
        return (HERE / name).read_text(encoding="utf-8")

    return Template(part("report.html")).substitute(
        title=escape("What " + " and ".join(report.names) + " shows"), summary=escape(summary(report, runs)),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in report.notes), links=links, sections=body,
        css=part("report.css"), sheets="".join(map(sheet_rule, report.sheets)), data=data,
        plotly=library, script=part("report.js"), panel=part("report_panel.js"))


def summary(report: report_data.Report, runs: list[xr.Dataset]) -> str:
    lines = []
    for name, ds in zip(report.names, runs):
        parts = [f"{ds.sizes['sample']:,} samples"]
        if "label" in ds.variables and (ds.label.values >= 0).any() and "prediction" in ds.variables:
            known = int((ds.label.values >= 0).sum())
            mistakes = int(np.count_nonzero(report_data.wrong(ds)))
            parts.append(f"{100 * (1 - mistakes / known):.2f} % right ({mistakes:,} wrong)")
        parts.append("layers mapped: " + (", ".join(cnnscope.layers(ds)) or "none"))
        lines.append(f"{name}: {', '.join(parts)}.")
    return " ".join(lines)


def sheet_rule(sheet: report_data.Sheet) -> str:
    """CSS of a picture's place-holder; once for all, so that the data are in the page once."""
    data = base64.b64encode(sheet.png).decode()
    return (f".sheet-{sheet.key}{{background-image:url(data:image/png;base64,{data});aspect-ratio:{sheet.width}/{sheet.height};"
            f"background-size:{100 * sheet.columns}% {100 * sheet.rows}%}}\n")


if __name__ == "__main__":
    main()
