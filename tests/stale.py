"""randmix.main as on a network file system: other processes than the first list folders late.

A listing takes 50 ms there, and is repeated from memory for STALE_SECONDS (2 by default).
"""

import os
import runpy
import sys
import time


def make_stale(seconds: float) -> None:
    """Makes this process's os.listdir and os.scandir slow and stale in checkpoints' folders."""
    remembered: dict[tuple[str, str], tuple[float, list]] = {}

    def late(name):
        original = getattr(os, name)

        def listing(path=".", *rest):
            if isinstance(path, int) or "/checkpoints" not in f"{os.fspath(path)}/":
                return original(path, *rest)
            key = (name, os.fspath(path))
            time.sleep(0.05)
            at, found = remembered.get(key, (0, []))
            if time.monotonic() - at > seconds:
                found = list(original(path, *rest))
                remembered[key] = (time.monotonic(), found)
            return Listing(found)

        return listing

    for name in ("listdir", "scandir"):
        setattr(os, name, late(name))


class Listing(list):
    """A list that, like the result of os.scandir, is an iterator and a context."""

    def __next__(self):
        if not self:
            raise StopIteration
        return self.pop(0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def close(self):
        """Nothing is open."""


if __name__ == "__main__":
    if "--process_id=0" not in sys.argv:
        make_stale(float(os.environ.get("STALE_SECONDS", "2")))
    runpy.run_module("randmix.main", run_name="__main__", alter_sys=True)
