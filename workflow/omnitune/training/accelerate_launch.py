"""`accelerate launch`, without its own traceback: the training process that failed has said why."""

import sys

from accelerate.commands.accelerate_cli import main
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"process {rank} of the training ended with exit code {failure.exitcode}")
