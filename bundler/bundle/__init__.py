"""What a bundle is: the image set, its pins and the lock."""
