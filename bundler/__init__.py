"""airgap-sync: carry every image of a K3s release across an air gap."""

__version__ = "0.1.0"
