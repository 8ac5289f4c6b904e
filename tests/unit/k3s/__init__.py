"""Tests of what we know about K3s."""
