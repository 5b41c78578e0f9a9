"""A process of an encoding, as omnitune.encoding.encode starts it."""

from omnitune.console import setup_process

setup_process()  # before the libraries are imported, which warn of what is no fault

from omnitune.encoding.encode import main  # noqa: E402

main()
