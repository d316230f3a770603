"""What holds for all tests."""

import signal

import pytest

# A shell starts what runs in its background with Ctrl-C ignored, and whatever is started from there
# inherits that: the tests that press it would press it in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A tiny base model with random weights."""
    from tests import training_set

    return training_set.make_base(tmp_path_factory.mktemp("base"))
