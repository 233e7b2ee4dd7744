"""torchrun without its own report of a failure, since the failed process has reported it."""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the supervisor blocked it
    try:
        main(sys.argv[1:])
    except ChildFailedError:
        sys.exit(1)
    except SignalException as stop:
        sys.exit(128 + int(stop.sigval))
