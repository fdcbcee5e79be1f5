"""Reading and writing: files replaced at once, JSON with bounds, the hub, what must not be told."""
