"""What was measured, as files: one table of the kinds of results, one writer, one reader, and points made of rows.

`kinds` says which columns the rows of each kind have; `writing` writes a result, `reading` reads a file or a folder of
them, `points` merges the seeds of rows. What measures, compares, reports and publishes reads and writes through these.
"""
