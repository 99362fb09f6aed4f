"""Calls about work: processes, workflows, crons, generators, log lines and channels."""
