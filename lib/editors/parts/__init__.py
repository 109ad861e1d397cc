"""What editors of several families are made of."""
