"""`torch.distributed.checkpoint`, the engine under the checkpoints: its failures in one line, and no warning."""

from __future__ import annotations

import warnings

from torch.distributed.checkpoint.api import CheckpointException

from runtime import distributed
from runtime.errors import UserError, one_line


def explained(failure: CheckpointException, what: str) -> Exception:
    """The first rank's failure in one line; a failure that no user can cause keeps every rank's traceback."""
    rank, (error, _) = min(failure.failures.items())
    if not isinstance(error, (OSError, UserError)):
        return RuntimeError(str(failure))
    where = f"rank {rank}: " if distributed.get_world_size() > 1 else ""
    return UserError(f"{what}: {where}{one_line(error)}")


def quiet_without_group() -> None:
    """The engine finds it worth a warning that a single process has no process group."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
