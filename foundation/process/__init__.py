"""Children: launched the same way, watched, restarted with patience, and gone when their parent is gone."""
