"""Tests of what a K3s site needs."""
