"""What two models or more are made of."""
