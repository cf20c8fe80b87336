"""How stage 2's model is chosen and read, as options of a command: the same names and words wherever a model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

READ_NAMES = "generate|score"

ModelFile = Annotated[
    Path | None, typer.Option("--model", metavar="GGUF", help="Language model file; without it the packaged one.")
]
GpuLayers = Annotated[int, typer.Option("--gpu-layers", help="Layers of the language model on the GPU; -1 means all.")]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="PATH", help="Adapter folder, or GGUF file of LoRA matrices; without it that of the task."),
]
NoAdapter = Annotated[bool, typer.Option("--no-adapter", help="The language model as it is.")]
ReadBy = Annotated[
    str | None, typer.Option("--read", metavar=READ_NAMES, help="The model writes its answer, or scores of letters are read.")
]
Rereads = Annotated[
    int,
    typer.Option(
        "--rereads",
        metavar="N",
        min=0,
        max=9,
        help="Let a model that writes its answers read each report N more times, examples reordered, to see how sure it is.",
    ),
]
Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="An OpenAI-compatible server in place of a model in this process.")
]
ServerModel = Annotated[str | None, typer.Option("--server-model", metavar="NAME", help="What the server calls its model.")]
ServerPlain = Annotated[bool, typer.Option("--server-plain", help="Send the server standard fields only, no grammar.")]
ServerTimeout = Annotated[float, typer.Option("--server-timeout", help="Seconds that the server has for an answer.")]
HttpConcurrency = Annotated[int, typer.Option("--http-concurrency", min=1, help="Reports on their way to the server at once.")]
