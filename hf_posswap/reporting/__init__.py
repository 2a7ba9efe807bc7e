"""Reports: figures as images and as an HTML page, drawn from result files only.

A result passes through four representations: rows of a file (`hf_posswap.results`), points (`results.points`), a figure
(`figures`, made in one module for each kind), and then either an image (`images`) or a part of the page (`page`).
"""
