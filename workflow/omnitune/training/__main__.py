"""A process of a training, as omnitune.launching starts it."""

from omnitune.console import setup_process

setup_process()  # before the libraries are imported, which warn of what is no fault

from omnitune.training.loop import main  # noqa: E402

main()
