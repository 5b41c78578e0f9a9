"""What a conversion writes, one module for each format: its files, and how the programs that it is for read them."""
