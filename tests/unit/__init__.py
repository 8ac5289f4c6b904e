"""Tests of airgap-sync."""
