"""Writing results down: tables, files and figures, every figure drawn from the files alone."""
