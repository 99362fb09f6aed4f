"""Tests of mDNS and networks."""
