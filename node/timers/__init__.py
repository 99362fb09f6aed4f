"""Timers: crons and generators, which start workflows on the one daemon that leads."""
