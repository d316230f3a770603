"""What holds for all tests."""

import signal

# A shell starts what runs in its background with Ctrl-C ignored, and whatever is started from there
# inherits that: the tests that press it would press it in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
