"""Writing results down: tables, files and figures, every figure drawn from the files alone.

On its way to a reader a result goes through four descriptions: rows of a file (`results`), points (`points`), a figure
(`figures`, made in a file for each kind), and then either an image (`images`) or a place in the page (`page`).
"""
