"""What the workers of one search share: where it is kept, who evaluates what."""
