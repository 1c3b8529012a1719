"""`python -m pipeline` is `morphline`: what `accelerate launch` starts in each process."""

from pipeline.cli import app

app()
