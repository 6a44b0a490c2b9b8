"""Losses of parts on eight simulated devices: the numbers of one."""

import json
import sys

import pytest
import tiny


@pytest.mark.devices
def test_eight_devices_equal_one():
    done = tiny.run([sys.executable, "tests/losses/on_devices.py"], devices=8)
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 10
    assert max(worst.values()) <= 1e-5, worst
