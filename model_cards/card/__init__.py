"""What a card says, and where each line comes from."""
