"""What is measured, beside what, and how it becomes docs/performance.md.

`pages` makes the data, `systems` and `peers` are what is measured, `rounds` interleaves and times them, `groups` lists what is
measured together, `rows` turns times into the ratios that are promised, `compare` runs all that and writes results.json, `report`
writes the document from it, `check` holds it against baseline.json. The files `test_*.py` are pytest-benchmark's.
"""
