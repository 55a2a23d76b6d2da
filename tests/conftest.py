"""What every test relies on."""

import os
import signal

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are drawn anew in every local run, and in CI they are the same ones each time. How long one takes is no
# reason to fail: that is the machine's.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("in-ci", settings.get_profile("here"), derandomize=True, database=None, print_blob=True)
settings.load_profile("in-ci" if os.environ.get("CI") == "true" else "here")
if os.environ.get("CI") == "true":
    # Numbers and words of whatever modules of ours are imported by then would go into the examples, which changed with
    # every commit and with the order of the tests.
    providers._get_local_constants = lambda: providers._local_constants
