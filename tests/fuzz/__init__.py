"""Hostile input, found by coverage: `python -m tests.fuzz TARGET [libFuzzer's options]`, with the corpus beside this.

`targets` holds one function for each parser that strangers reach, with what must hold for every input.
"""
