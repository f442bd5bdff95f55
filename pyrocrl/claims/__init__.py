"""What a model claims, up to what, and what the claim needs."""
