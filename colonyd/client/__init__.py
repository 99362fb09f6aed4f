"""Calls of a colony for programs: submit, wait, workflows, files."""
