"""*Interrupt* in a real kernel: one sentence, what is whole is kept, the same cell goes on."""

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
# One that says when it is at work, and sleeps there, in one statement: an interrupt between two
# comes while IPython compiles the next, which shows it in its own way.
SLEEP = """
import time
print("at work", flush=True) or time.sleep(60)
"""


class Kernel:
    """Runs cells as JupyterLab does, and interrupts them at a word of theirs."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def run(self, source, until=None):
        """What a cell has put out; it is interrupted when it has said `until`."""
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


def test_an_interrupt_is_one_sentence_and_another_error_is_as_ever(kernel):
    assert not errors(
        kernel.run("from avomni_lib.notebook.run import faults; faults.show_messages()")
    )
    (told,) = errors(kernel.run(SLEEP, until="at work"))
    assert told["ename"] == "KeyboardInterrupt" and told["traceback"] == [faults.WORDS]
    (other,) = errors(kernel.run("1 / 0"))
    assert other["ename"] == "ZeroDivisionError" and len(other["traceback"]) > 1
    (again,) = errors(kernel.run(SLEEP, until="at work"))
    assert again["traceback"] == [faults.WORDS]


def test_an_interrupted_cache_is_finished_by_the_same_cell(kernel, tmp_path):
    write_published_set(tmp_path / "published", 2, cached_run.CLIPS_PER_CHUNK, cached_run.SECONDS)
    values = cached_run.values(tmp_path)
    download.fetch(Params.from_values(values), None)
    assert not errors(kernel.run(OPEN.format(values=json.dumps(values))))
    (told,) = errors(kernel.run(BUILD, until="ETL: 0/12 clip"))
    assert told["traceback"] == [faults.WORDS]
    outputs = kernel.run(BUILD)
    assert not errors(outputs)
    assert outputs[-1][1]["data"]["text/plain"] == "12"


def test_without_a_kernel_nothing_is_asked():
    assert faults.show_messages() is None


def test_what_the_system_refuses_is_said_in_words_and_other_errors_are_as_ever(kernel):
    kernel.run("from avomni_lib.notebook.run import faults; faults.show_messages()")
    (full,) = errors(kernel.run("with open('/dev/full', 'w') as file: file.write('x')"))
    assert full["ename"] == "OSError" and len(full["traceback"]) == 2
    assert "no room left on the disk" in full["traceback"][0]
    (place,) = errors(kernel.run("open('/dev/null/file', 'w')"))
    assert place["ename"] == "NotADirectoryError" and "/dev/null/file" in place["traceback"][1]
    (missing,) = errors(kernel.run("open('no such file')"))
    assert missing["ename"] == "FileNotFoundError" and len(missing["traceback"]) > 1
