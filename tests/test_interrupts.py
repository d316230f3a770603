"""Interrupting a cell in a real kernel: one sentence is shown, and the cell can be run again."""

import json
import time

import pytest
from jupyter_client.manager import KernelManager

from avomni_lib.dataset.download import download
from avomni_lib.notebook.run import faults
from avomni_lib.params import Params
from tests import cached_run
from tests.published_set import write_published_set

OPEN = """
import json
from avomni_lib.params import Params
p = Params.from_values(json.loads({values!r}))
from avomni_lib.etl.run import build
from avomni_lib.notebook.run import faults
from avomni_lib.notebook import progress
faults.show_messages()
"""
BUILD = "built = build.build(p, progress.bar())\nlen(built.clips)"
# Printing and sleeping are one statement: between two statements, an interrupt arrives while
# IPython compiles the second one, and IPython then shows its own traceback.
SLEEP = """
import time
print("at work", flush=True) or time.sleep(60)
"""


class Kernel:
    """Runs cells as JupyterLab does, and interrupts them when they print a given text."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def run(self, source, until=None):
        """The outputs of a cell, which is interrupted once it has printed `until`."""
        sent = self.client.execute(source, allow_stdin=True)
        outputs, end = [], time.monotonic() + 120
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return outputs
            outputs.append((kind, content))
            if until and kind != "execute_input" and until in json.dumps(content):
                until = None
                self.manager.interrupt_kernel()
        raise AssertionError("the cell did not end")


@pytest.fixture(scope="module")
def kernel():
    manager = KernelManager(kernel_name="python3", transport_encryption="required")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield Kernel(manager, client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def errors(outputs):
    return [content for kind, content in outputs if kind == "error"]


def test_interrupt_shows_one_sentence_and_other_errors_a_traceback(kernel):
    assert not errors(
        kernel.run("from avomni_lib.notebook.run import faults; faults.show_messages()")
    )
    (interrupt,) = errors(kernel.run(SLEEP, until="at work"))
    assert interrupt["ename"] == "KeyboardInterrupt" and interrupt["traceback"] == [faults.WORDS]
    (other,) = errors(kernel.run("1 / 0"))
    assert other["ename"] == "ZeroDivisionError" and len(other["traceback"]) > 1
    (again,) = errors(kernel.run(SLEEP, until="at work"))
    assert again["traceback"] == [faults.WORDS]


def test_rerunning_the_cell_finishes_an_interrupted_build(kernel, tmp_path):
    write_published_set(tmp_path / "published", 2, cached_run.CLIPS_PER_CHUNK, cached_run.SECONDS)
    values = cached_run.values(tmp_path)
    download.fetch(Params.from_values(values), None)
    assert not errors(kernel.run(OPEN.format(values=json.dumps(values))))
    (interrupt,) = errors(kernel.run(BUILD, until="ETL: 0/12 clip"))
    assert interrupt["traceback"] == [faults.WORDS]
    outputs = kernel.run(BUILD)
    assert not errors(outputs)
    assert outputs[-1][1]["data"]["text/plain"] == "12"


def test_show_messages_does_nothing_outside_a_kernel():
    assert faults.show_messages() is None


def test_full_disk_and_bad_path_errors_show_a_short_message(kernel):
    kernel.run("from avomni_lib.notebook.run import faults; faults.show_messages()")
    (full,) = errors(kernel.run("with open('/dev/full', 'w') as file: file.write('x')"))
    assert full["ename"] == "OSError" and len(full["traceback"]) == 2
    assert "no room left on the disk" in full["traceback"][0]
    (place,) = errors(kernel.run("open('/dev/null/file', 'w')"))
    assert place["ename"] == "NotADirectoryError" and "/dev/null/file" in place["traceback"][1]
    (missing,) = errors(kernel.run("open('no such file')"))
    assert missing["ename"] == "FileNotFoundError" and len(missing["traceback"]) > 1
