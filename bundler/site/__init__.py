"""What a K3s site needs: where its images are put, what its nodes are told, and proof that they find them."""
