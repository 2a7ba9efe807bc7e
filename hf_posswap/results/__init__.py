"""Result files: one table of the kinds of results, one writer, one reader, and points computed from rows.

`kinds` defines the columns of each kind; `writing` writes a result, `reading` reads a file, `groups` reads a folder of
them, and `points` merges the seeds of rows. Evaluation, comparison, reporting and publishing all use these modules.
"""
