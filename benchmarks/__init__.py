"""Timings, for information: no claim rests on a wall clock."""
