"""Ends a process that no longer makes progress, with the stack of every thread, so that a supervisor can start anew."""

import faulthandler
import sys


class Watchdog:
    """While entered, the process must call `alive` (or `rest`) every `seconds`; 0 switches the watch off.

    A process that does not, for example because it waits for another host that is gone, prints where each of its
    threads is and exits with code 1. A collective that waits cannot be interrupted from Python, so nothing gentler
    works.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f"hang_seconds={seconds} must be 0 (no watch) or more.")
        self.seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def alive(self) -> None:
        """Progress was made; the next is due in `seconds`."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)

    def rest(self) -> None:
        """Until the next `alive`, nothing is due: scoring, saving."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()

    def __exit__(self, *_: object) -> None:
        self.rest()
