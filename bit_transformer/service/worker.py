"""One of the processes that `launch.py` starts through torchrun: runs an operation as a rank.

python -m bit_transformer.service.worker FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from bit_transformer.distributed.world import is_main
from bit_transformer.errors import BitTransformerError, RankFailed
from bit_transformer.service import launch
from bit_transformer.service.jobs import Job, Message, Notice
from bit_transformer.service.operations import OPERATIONS, Operation
from bit_transformer.service.requests import ResumeRequest
from bit_transformer.service.workspace import Workspace


def run(folder: Path) -> int:
    """Run what is asked; the exit code. If an earlier start met an error that would come again, nothing is done, and the code is 0."""
    asked = json.loads((folder / launch.ASKED).read_text())
    if (folder / launch.ERROR).exists() or (folder / launch.RESULT).exists():
        return 0
    operation = OPERATIONS[asked["operation"]]
    request: Any = operation.request.model_validate(asked["request"])
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    main = is_main()

    def report(message: Message) -> None:
        if main:
            launch.write_event(folder, message)

    if restarts:
        operation, request, after = again(operation, request)
        reasons = [path for path in launch.latest(folder, launch.LOST) if path.name.split("-")[1] == str(restarts - 1)]
        killed = [line for line in launch.deaths(folder / "log") if "signal" in line]
        said = killed or [path.read_text() for path in reasons]
        why = f" ({said[0]})" if said else ""
        report(Notice(f"the processes were started again, {after}{why}"))
    job = Job(report, listens=False, number=asked["job"], again=asked["again"])
    try:
        result = operation(request, Workspace(Path(asked["store"]), asked["device"]), job)
    except RankFailed as lost:
        (folder / f"{launch.LOST}-{restarts}-{os.environ['RANK']}").write_text(lost.what.partition(". Try")[0])
        return 1
    except BitTransformerError as error:
        launch.write_error(folder, error)
        return 1
    except Exception:
        (folder / f"{launch.FAULT}-{restarts}-{os.environ['RANK']}").write_text(traceback.format_exc())
        raise
    if main:
        launch.write_result(folder, asked["operation"], result)
    return 0


def again(operation: Operation, request: Any) -> tuple[Operation, Any, str]:
    """What a training that was killed does when it is started again: continue from the last checkpoint, if there is one."""
    from bit_transformer.service.training import training_state

    if isinstance(request, ResumeRequest):
        return operation, request, "from the last checkpoint"
    if training_state(request.out) is None:
        return (
            operation,
            request.model_copy(update={"overwrite": True}),
            "from the beginning: there was no checkpoint yet",
        )
    again = ResumeRequest(out=request.out, distributed=request.distributed)
    return OPERATIONS["resume"], again, "from the last checkpoint"


if __name__ == "__main__":
    launch.leave(run(Path(sys.argv[1])))
