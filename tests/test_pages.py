"""Executed notebooks as HTML pages: self-contained, without scripts or network requests."""

import base64
import io
import re

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.pages import web
from avomni_lib.notebook.run import pipeline, runs
from avomni_lib.params import CONFIDENTIAL, Params
from tests.test_report import Page

ANSWER = "<think>\nAvg $x$ <script>alert(1)</script> & more"


def png(width=40, height=30):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def display_output(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


# A table as pandas writes it.
TABLE = """<div><style scoped>\n.dataframe th { top: 0 }\n</style>
<table><tr><th>split</th></tr><tr><td onclick='x'>train</td></tr></table></div>"""


def executed():
    """A notebook as papermill writes it, with every kind of output that ours produce."""
    widget = {web.VIEW: {"model_id": "1"}, "text/plain": "VBox(children=(IntSlider(value=5"}
    lines = [f"2026-11-22 10:00:0{n}  ETL: {n} of 3 clips\n" for n in range(4)]
    outputs = [
        *[new_output("stream", name="stdout", text=line) for line in lines],
        new_output(
            "stream", name="stderr", text="frames:   0%|    | 0/9\rframes: 100%|####| 9/9\n"
        ),
        display_output(widget),
        display_output({"image/png": png() + "\n", "text/plain": "<Picture>"}),
        display_output({"text/html": TABLE}),
        display_output({"text/plain": ANSWER}),
        display_output({"application/javascript": "fetch('https://cdn.example')"}),
    ]
    return new_notebook(
        cells=[
            new_markdown_cell("# 03 · ETL: clips to frames\n\nOne `sentence`."),
            new_markdown_cell("## See what went in\n\nLook for *black* tiles."),
            new_code_cell("built = build.build(p)", outputs=outputs, execution_count=1),
            new_markdown_cell(
                "## What came out\n\n[04_tiles](04_tiles.ipynb) [x](02_download.ipynb)"
            ),
            new_code_cell(
                "1 / 0",
                outputs=[
                    new_output("error", ename="AvomniError", evalue="x", traceback=["cut <short>"])
                ],
            ),
        ],
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )


@pytest.fixture
def p(tmp_path):
    return params(tmp_path)


def params(tmp_path, source="world"):
    values = {"run": {"outputs_dir": str(tmp_path), "name": "test"}, "dataset": {"source": source}}
    return Params.from_values(values)


def put(p, name, notebook):
    folder = runs.stage_dir(p, name)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def page_of(p, name="03_etl"):
    web.write(p)
    return (p.run_dir / web.FOLDER / f"{name}.html").read_text()


def test_page_is_self_contained_and_has_no_scripts(p):
    put(p, "03_etl", executed())
    page = page_of(p)
    tags = Page(page)
    assert ".dataframe th" not in page
    assert not tags.of("script") and not tags.of("link") and not tags.of("iframe")
    (image,) = tags.of("img")
    inside = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    size = int(image["width"]), int(image["height"])
    assert Image.open(io.BytesIO(inside)).size == (40, 30) == size
    assert image["alt"] == "See what went in"
    targets = [a["href"] for a in tags.of("a") if not a["href"].startswith("#")]
    assert targets and all(re.fullmatch(r"[\w.]+\.html", href) for href in targets)
    assert not any(
        attribute.startswith("on") for _, attributes in tags.tags for attribute in attributes
    )
    assert "https://" not in page and "http://" not in page and "@import" not in page


def test_text_is_escaped_tables_are_kept_and_code_is_folded(p):
    put(p, "03_etl", executed())
    page = page_of(p)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "cut &lt;short&gt;" in page
    tags = Page(page)
    assert tags.of("table") and tags.of("th") and not any(tags.of("td")[0])
    assert "<details><summary>code</summary><pre>built = build.build(p)</pre></details>" in page
    # No stale progress bar and no text fallback of a widget.
    assert "VBox(" not in page and "0%|  " not in page and "100%|####" in page
    lines = re.search(r"<pre>(2026.*?)</pre>", page, re.DOTALL)[1].strip().splitlines()
    assert len(lines) == 4, "lines of one bar stand in one block"
    assert "<Picture>" not in page and "&lt;Picture&gt;" not in page


def test_links_point_only_to_existing_pages(p):
    put(p, "03_etl", executed())
    put(p, "04_tiles", executed())
    page = page_of(p)
    assert '<a href="04_tiles.html">04_tiles</a>' in page and "02_download" not in page
    folder = p.run_dir / web.FOLDER
    assert sorted(path.name for path in folder.iterdir()) == [
        "03_etl.html",
        "04_tiles.html",
        "index.html",
    ]
    for path in folder.iterdir():
        for link in Page(path.read_text()).of("a"):
            assert link["href"].startswith("#") or (folder / link["href"]).exists()


def test_index_lists_every_stage_and_links_the_score(p):
    put(p, "06_evaluate", executed())
    (p.run_dir / web.SCORE_SOURCE).write_text("<!doctype html><p>the score itself")
    index = web.write(p)
    assert index == p.run_dir / "report" / "index.html"
    text = index.read_text()
    assert all(stage.name in text and stage.purpose in text for stage in runs.STAGES)
    assert text.count("not run yet") == len(runs.STAGES)
    assert '<a href="score.html">the score</a>' in text
    assert index.with_name("score.html").read_text().endswith("the score itself")
    # Writing the pages again without a score removes the old score page.
    (p.run_dir / web.SCORE_SOURCE).unlink()
    assert "score.html" not in web.write(p).read_text()
    assert not index.with_name("score.html").exists()


def test_page_of_an_unfinished_or_stale_stage_says_so(p):
    put(p, "03_etl", executed())
    assert "This stage has not finished" in page_of(p)
    result = {"figures": {}, "params_digest": "other", "params": {}, "seconds": 4.0, "inputs": {}}
    result |= {"outputs": {}, "digest": "some", "finished_at": "today"}
    files.write_json(runs.stage_dir(p, "03_etl") / runs.RESULT, result)
    assert "parameters or data: stale: " in page_of(p)


def test_pages_of_third_party_clips_carry_the_banner(tmp_path):
    for source, count in (("world", 0), ("folder", 2), ("hub", 2)):
        p = params(tmp_path / source, source)
        put(p, "03_etl", executed())
        for name in ("03_etl", "index"):
            assert page_of(p, name).count(CONFIDENTIAL) == count


def test_run_without_executed_notebooks_is_an_error(p, tmp_path, capsys):
    with pytest.raises(AvomniError, match="no notebook of this run has been executed"):
        web.write(p)
    demo = str(files.PROJECT_ROOT / "params" / "demo.yaml")
    changes = ["--set", f"run.outputs_dir={tmp_path}", "--set", "run.name=other"]
    assert web.main([demo, *changes]) == 1
    assert "error: no notebook of this run" in capsys.readouterr().err
    put(Params.from_files([demo], changes[1::2]), "03_etl", executed())
    assert web.main([demo, *changes]) == 0
    assert capsys.readouterr().out.strip().endswith("other/report/index.html")


def test_truncated_notebook_error_names_the_file(p):
    put(p, "03_etl", executed())
    path = runs.stage_dir(p, "03_etl") / "03_etl.ipynb"
    path.write_text(path.read_text()[:200])
    with pytest.raises(AvomniError, match="not a notebook that can be read") as caught:
        web.write(p)
    assert caught.value.where == str(path)


def test_jupyter_trusts_notebooks_executed_by_the_pipeline(p, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    put(p, "04_tiles", executed())
    path = runs.stage_dir(p, "04_tiles") / "04_tiles.ipynb"
    assert not NotebookNotary().check_signature(nbformat.read(path, as_version=4))
    pipeline._clean_notebook(path)
    assert NotebookNotary().check_signature(nbformat.read(path, as_version=4))
    changed = nbformat.read(path, as_version=4)
    changed.cells[2].source += "  # by another hand"
    assert not NotebookNotary().check_signature(changed)
    # A notebook that cannot be signed does not stop the run.
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "file" / "jupyter"))
    pipeline._clean_notebook(path)
    path.write_text(path.read_text()[:200])
    pipeline._clean_notebook(path)
    assert caplog.text.count("is not trusted") == 2
