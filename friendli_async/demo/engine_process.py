"""The child process of `LocalEngine`: the HTTP server of llama.cpp, which runs until its standard input is closed.

It is run as a file, not as a module, so that it imports neither this package nor aiohttp.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any, Final

SETTINGS_VARIABLE: Final = "FRIENDLI_ENGINE_SETTINGS"


def main(settings: dict[str, Any]) -> None:
    """Serve until standard input is closed, which also happens if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C signals the whole group; the parent decides when to stop
    announce = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to both; only the address is written to the pipe

    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without types
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model_path"]
    parameters.model_alias = {settings["name"]}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = settings["context"]
    parameters.n_parallel = settings["parallel"]
    # A keep-alive connection occupies a thread of the server while it is idle.
    parameters.n_threads_http = settings["parallel"] + 32
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.use_jinja = True
    if settings["chat_template"] is not None:
        parameters.chat_template = settings["chat_template"]
    if settings["api_key"] is not None:
        parameters.api_keys = [settings["api_key"]]
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)  # returns when the model is loaded and the port is open
    os.write(announce, server.listening_address.encode() + b"\n")
    os.close(announce)
    sys.stdin.buffer.read()
    # Skip the destructor of the server: if it runs before the server's loop has started, it waits forever.
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(os.environ.pop(SETTINGS_VARIABLE)))
