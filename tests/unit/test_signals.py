"""Being told to stop: the end of a step is waited for, a second signal is obeyed at once."""

import os
import signal

import pytest

from toolkit.signals import StopSignals, TerminatedError


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)]
)
def test_a_stop_signal_waits_for_the_end_of_a_step(number, error):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        step_ended = True
        assert signals.wanted
        with pytest.raises(error):
            signals.obey()
        with pytest.raises(error):
            os.kill(os.getpid(), number)  # a second one insists
    assert step_ended
    assert signal.getsignal(number) is before


def test_a_measurement_is_broken_off_at_once():
    did = []

    def measure(signals):
        with signals.at_once():
            did.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            did.append("went on")

    with StopSignals() as signals:
        for _ in range(2):  # a process that is to stop begins none
            with pytest.raises(TerminatedError):
                measure(signals)
    assert did == ["begun"]
