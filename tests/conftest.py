"""What holds for all tests."""

import signal

import hypothesis
import pytest

# No test is a measurement of time: a busy machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")

# A shell starts what runs in its background with Ctrl-C ignored, and whatever is started from there
# inherits that: the tests that press it would press it in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A tiny base model with random weights."""
    from tests import training_set

    return training_set.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def kept_bars():
    """A class of progress bars, and the list of those that are made of it."""
    from avomni_lib.plan import Bar

    bars = []

    class Kept(Bar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    return Kept, bars


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """Two chunks of four clips of 1.5 s; who changes it copies it first."""
    from tests import published_set

    return published_set.write_published_set(tmp_path_factory.mktemp("small_set"), 2, 4, 1.5)


@pytest.fixture(scope="session")
def small_cache(small_set, tmp_path_factory):
    """Every file of the cache that one undisturbed build makes of it."""
    from avomni_lib.etl.run import build
    from tests import folder_run

    p = folder_run.chosen(tmp_path_factory.mktemp("small_cache"), small_set)
    build.build(p)
    return folder_run.content(p.cache_dir)


@pytest.fixture(scope="session")
def large_set(tmp_path_factory):
    """The published set of `evicting_run`; who changes it copies it first."""
    from tests import evicting_run

    return evicting_run.write(tmp_path_factory.mktemp("large_set"))


@pytest.fixture
def served(large_set):
    """A hub that serves it."""
    from tests import evicting_run, local_hub

    with local_hub.serve(large_set, evicting_run.REPO) as hub:
        yield hub
