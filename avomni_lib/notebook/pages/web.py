"""A run's executed notebooks as web pages: `python -m avomni_lib.notebook.pages.web PARAMS.yaml`.

The pages embed all images, have no scripts and load nothing from a network, so they can be mailed
and archived. Code is folded. Views of widgets are left out, as the notebooks show the same as an
image.
"""

from __future__ import annotations

import argparse
import base64
import functools
import re
import shutil
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from traitlets.config import Config

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.pages.report import template
from avomni_lib.notebook.run import faults, runs
from avomni_lib.notebook.run.stages import in_short, stages_of
from avomni_lib.params import Params
from avomni_lib.plan import minutes

FOLDER, INDEX, SCORE = "report", "index.html", "score.html"
SCORE_SOURCE = "06_evaluate/report.html"
FRAME, CELLS = "page.html.jinja", "cells.html.jinja"
VIEW = "application/vnd.jupyter.widget-view+json"
# Allowed tags in the HTML outputs of cells: those of our tables.
TAGS = ["table", "thead", "tbody", "tr", "th", "td", "p", "b", "i", "em", "strong", "br", "code"]
TAGS += ["ul", "ol", "li", "h3", "h4", "pre", "span", "div"]
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\((\w+)\.ipynb\)")


def write(p: Params) -> Path:
    """Write `outputs/<run>/report/`: one page per executed stage, and an index.

    Returns:
        Path of the index.

    Raises:
        AvomniError: no stage has been executed by `run`, or a notebook cannot be read.
    """
    executed = {
        stage.name: path
        for stage in stages_of(p)
        if (path := runs.executed_path(p, stage)).exists()
    }
    if not executed:
        raise AvomniError(
            "no notebook of this run has been executed yet",
            where=str(p.run_dir),
            fix="python -m avomni_lib run PARAMS.yaml (what is run by hand in JupyterLab stays in "
            "notebooks/)",
        )
    folder, states = p.run_dir / FOLDER, {state.stage.name: state for state in runs.states(p)}
    score = p.run_dir / SCORE_SOURCE
    has_score = score.exists()
    for old in [*folder.glob("*.html")]:
        old.unlink()
    links = {INDEX: "all notebooks"} | {f"{name}.html": name for name in executed}
    links |= {SCORE: "the score"} if has_score else {}
    for name, path in executed.items():
        body, warning = body_of(_read(path), set(executed)), _warning(states[name])
        page = _frame(p, links, f"{name}.html", name, body=body, warning=warning)
        files.write_text(folder / f"{name}.html", page)
    if has_score:
        with files.write_whole(folder / SCORE) as copy, open(score, "rb") as source:
            shutil.copyfileobj(source, copy)
    rows = [_row(states[stage.name]) for stage in stages_of(p)]
    files.write_text(folder / INDEX, _frame(p, links, INDEX, "the notebooks", rows=rows))
    return folder / INDEX


def body_of(notebook: nbformat.NotebookNode, pages: set[str]) -> str:
    """The cells of an executed notebook, which is modified, as HTML.

    Links to notebooks that have no page (`pages`) become plain text.
    """

    def link(match: re.Match[str]) -> str:
        text, name = match.groups()
        return f"[{text}]({name}.html)" if name in pages else text

    words = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(link, cell.source)
            # The first heading or sentence is the alt text of the images that follow.
            line = next((line for line in cell.source.splitlines() if line.strip()), "picture")
            words = re.sub(r"[#*`_|]+", "", line).strip()
            continue
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if VIEW not in output.get("data", {})]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                # The header of a PNG contains its size in px.
                header = base64.b64decode(output.data["image/png"][:44])[16:24]
                width, height = struct.unpack(">II", header)
                output.metadata["image/png"] = {"alt": words, "width": width, "height": height}
            if "text/html" in output.get("data", {}):
                sanitizer = SanitizeHTML(tags=TAGS, attributes={}, strip=True)
                # Stripping a <style> tag would keep its text.
                html = STYLE.sub("", output.data["text/html"])
                output.data["text/html"] = sanitizer.sanitize_html_tags(html)
    return _exporter().from_notebook_node(notebook)[0]


@functools.cache
def _exporter() -> HTMLExporter:
    template = (Path(__file__).parent / CELLS).read_text()
    # Keep the last state of an overwritten progress bar, and join consecutive stream outputs.
    config = Config({"CoalesceStreamsPreprocessor": {"enabled": True}})
    return HTMLExporter(
        config=config,
        template_name="basic",
        raw_template=template,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


def _frame(
    p: Params,
    links: Mapping[str, str],
    here: str,
    title: str,
    *,
    body: str = "",
    warning: str = "",
    rows: Sequence[Mapping[str, str]] = (),
) -> str:
    return template(FRAME).render(
        title=f"{p.run.name}: {title}",
        links=links,
        here=here,
        warning=warning,
        body=jinja2.filters.Markup(body),
        rows=rows,
        notice=p.notice,
        foot=f"Page made {files.now()}.",
    )


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise AvomniError(
            f"not a notebook that can be read: {str(error).splitlines()[0]}",
            where=str(path),
            fix="run its stage again: python -m avomni_lib run PARAMS.yaml --only STAGE --force",
        ) from None


def _warning(state: runs.StageState) -> str:
    """A warning for an unfinished or stale stage; the notebook of a killed one looks complete."""
    if state.done:
        return ""
    if state.result is None:
        return (
            "This stage has not finished: the notebook is as it was when it stopped, and a cell "
            "that says nothing may not have run."
        )
    return f"This notebook is older than the run's parameters or data: {state.reason}."


def _row(state: runs.StageState) -> dict[str, str]:
    name, result = state.stage.name, state.result
    return {
        "name": name,
        "purpose": state.stage.purpose,
        "outcome": in_short(name, result["figures"]) if result else "",
        "time": minutes(result["seconds"]) if result else "",
        "state": state.reason,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("params", nargs="+", metavar="PARAMS.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    try:
        print(write(Params.from_files(options.params, options.set)))
    except Exception as error:
        print(f"error: {faults.in_words(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
