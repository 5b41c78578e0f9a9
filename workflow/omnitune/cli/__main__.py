"""`python -m omnitune.cli`, as training jobs call it: from the Python that runs them, whatever PATH says."""

from omnitune.cli import main

if __name__ == "__main__":
    main()
