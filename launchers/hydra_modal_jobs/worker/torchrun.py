"""torchrun without its report of a failure, which the process that failed has told already."""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable()
    try:
        main(sys.argv[1:])
    except ChildFailedError:
        sys.exit(1)
    except SignalException as stop:
        sys.exit(128 + int(stop.sigval))
