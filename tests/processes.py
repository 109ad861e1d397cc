"""Other processes in a blink: forked from a server that has imported the library and nothing else.

A fresh interpreter needs seconds to import torch and transformers. The server does that once; its
children share no state with the tests, and can be killed without mercy.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# Seconds after which a test gives up on another process. Tests wait for events; this only keeps a
# process that hangs from hanging the suite, however busy the machine is.
PATIENCE = 3600

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "peft", "lib.runs.study", "lib.editors.locate.editor"])


def start(function: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that calls `function(connection, *arguments)`, and our end of the connection.

    `function` must be a module's own, as pickle wants it. An exception makes the exit code 1.
    """
    ours, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=_enter, args=(dict(os.environ), function, theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _enter(
    environment: dict[str, str],
    function: Callable[..., None],
    connection: Connection,
    *arguments: Any,
) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    function(connection, *arguments)
