"""This machine: settings, home directory, keys, certificate, log, systemd."""
