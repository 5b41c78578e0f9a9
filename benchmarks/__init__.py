"""What `make bench` measures; ratios within one run, since absolute times depend on the machine."""
